"""``pvopt generate`` on a checkpoint of tiny-llama."""

from __future__ import annotations

import pytest
import torch

from pvopt.cli import main
from pvopt.layers import QuantizedLinear
from pvopt.llm import load_model
from pvopt.tuning import autocast_dtype, load_student

# After this prompt the likeliest logit is ahead of the next one by 2 % at least, several times what
# rounding to bfloat16 moves it.
PROMPT = ["--prompt", "Here", "--tokens", "12"]
PAIRS = [("float32", 1), ("bfloat16", 2)]
DTYPES = pytest.mark.parametrize(("dtype", "count"), PAIRS, indirect=["count"])


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


def autocast(dtype):
    cast = autocast_dtype(dtype)
    return torch.autocast("cpu", cast, enabled=cast is not None)


def likeliest(model, tokens, count):
    """Greedy decoding by hand, every token from the whole text before it."""
    for _ in range(count):
        following = model(tokens[None]).logits[0, -1].argmax()
        tokens = torch.cat([tokens, following[None]])
        if following == model.config.eos_token_id:
            break
    return tokens


@pytest.fixture
def count(request):
    """Compute on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@DTYPES
@torch.no_grad()
def test_greedy_tokens_are_the_likeliest_of_the_decoded_model(checkpoint, generate, dtype, count):
    student, _, _ = load_student(checkpoint)
    with autocast(dtype):
        tokens = likeliest(student.model, student.encode("Here"), 12)
    expected = student.tokenizer.decode(tokens, skip_special_tokens=True)
    flags = ("--dtype", dtype)
    assert generate(*flags) == generate(*flags, "--dense") == expected + "\n"
    assert expected.startswith("Here")


def test_a_tuned_checkpoint_is_computed_as_it_was_tuned(tmp_path, monkeypatch, capsys):
    flags = ["--model", "tiny-llama", "--format", "grid:3g16", "--steps", "1", "--length", "32"]
    out = str(tmp_path)
    assert main(["tune", *flags, "--batch", "1", "--dtype", "bfloat16", "--out", out]) == 0
    seen = []
    forward = QuantizedLinear.forward

    def record(self, x):
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return forward(self, x)

    monkeypatch.setattr(QuantizedLinear, "forward", record)
    for more, used in (((), torch.bfloat16), (("--dtype", "float32"), False)):
        seen.clear()
        assert main(["generate", "--checkpoint", out, *PROMPT, *more]) == 0
        assert set(seen) == {used}


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


@DTYPES
@torch.no_grad()
def test_a_model_without_a_checkpoint(capsys, dtype, count):
    assert main(["generate", "--model", "tiny-llama", *PROMPT, "--dtype", dtype]) == 0
    loaded = load_model("tiny-llama")
    with autocast(dtype):
        tokens = likeliest(loaded.model, loaded.encode("Here"), 12)
    expected = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
    assert capsys.readouterr().out == expected + "\n"


def test_errors(generate):
    assert "--tokens must be at least 1" in generate("--tokens", "0", code=2)
    assert "--temperature must be finite" in generate("--temperature", "-1", code=2)
    assert "--temperature must be finite" in generate("--temperature", "nan", code=2)
    assert "--prompt must hold at least one token" in generate("--prompt", "", code=2)
