"""``pvopt generate`` on a checkpoint of tiny-llama."""

from __future__ import annotations

import pytest
import torch

from pvopt.cli import main
from pvopt.layers import QuantizedLinear
from pvopt.llm import load_model
from pvopt.tuning import load_student

PROMPT = ["--prompt", "To be", "--tokens", "12", "--dtype", "float32"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("checkpoint") / "q")
    assert main(["quantize", "--model", "tiny-llama", "--format", "grid:3g16", "--out", out]) == 0
    return out


@pytest.fixture
def generate(checkpoint, capsys):
    def run(*flags, code=0):
        capsys.readouterr()
        assert main(["generate", "--checkpoint", checkpoint, *PROMPT, *flags]) == code
        shown = capsys.readouterr()
        return shown.out if code == 0 else shown.err

    return run


def likeliest(model, tokens, count):
    """Greedy decoding by hand, every token from the whole text before it."""
    for _ in range(count):
        following = model(tokens[None]).logits[0, -1].argmax()
        tokens = torch.cat([tokens, following[None]])
        if following == model.config.eos_token_id:
            break
    return tokens


@torch.no_grad()
def test_greedy_tokens_are_the_likeliest_of_the_decoded_model(checkpoint, generate):
    student, _, _ = load_student(checkpoint)
    tokens = likeliest(student.model, student.encode("To be"), 12)
    expected = student.tokenizer.decode(tokens, skip_special_tokens=True)
    assert generate() == generate("--dense") == expected + "\n"
    assert expected.startswith("To be")


def test_the_layers_are_quantized_unless_dense(checkpoint, generate, monkeypatch):
    called = []
    forward = QuantizedLinear.forward
    monkeypatch.setattr(
        QuantizedLinear, "forward", lambda self, x: called.append(1) or forward(self, x)
    )
    generate("--dense")
    assert not called
    generate()
    assert called


def test_sampling_depends_on_the_seed_alone(generate):
    state = torch.random.get_rng_state()
    hot = ("--temperature", "1.5")
    first = generate(*hot)
    assert first == generate(*hot, "--seed", "0", "--dense")
    assert len({generate(*hot, "--seed", str(seed)) for seed in range(4)}) > 1
    assert torch.equal(torch.random.get_rng_state(), state)


@torch.no_grad()
def test_a_model_without_a_checkpoint(capsys):
    assert main(["generate", "--model", "tiny-llama", *PROMPT]) == 0
    loaded = load_model("tiny-llama")
    tokens = likeliest(loaded.model, loaded.encode("To be"), 12)
    expected = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
    assert capsys.readouterr().out == expected + "\n"


def test_errors(generate):
    assert "--tokens must be at least 1" in generate("--tokens", "0", code=2)
    assert "--temperature must be finite" in generate("--temperature", "-1", code=2)
    assert "--temperature must be finite" in generate("--temperature", "nan", code=2)
    assert "--prompt must hold at least one token" in generate("--prompt", "", code=2)
