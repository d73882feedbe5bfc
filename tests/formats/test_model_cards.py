from __future__ import annotations

import os

import pytest

pytest.importorskip("transformers", reason="the language-model extra is not installed")

import torch
from huggingface_hub import ModelCard

import pvopt
from pvopt.cli import main
from pvopt.formats import CheckpointError, load, load_tokenizer, save
from pvopt.llm import load_model

EVALUATIONS = [
    {"model": "teacher", "step": 0, "perplexity": 20.0, "nll_per_token": 3.0},
    {
        "model": "student",
        "step": 9,
        "perplexity": 30.25,
        "nll_per_token": 3.4,
        "divergence": 0.4,
        "context_length": 64,
        "windows": 3,
        "dtype": "float32",
    },
]


@pytest.fixture(scope="module")
def tiny():
    loaded = load_model("tiny-llama")
    pvopt_weights = pvopt.quantize_(loaded.model, pvopt.UniformGrid(bits=2, group_size=32))
    return loaded, pvopt_weights


def saved(tiny, folder, **metadata):
    loaded, weights = tiny
    tokenizer = loaded.tokenizer
    save(folder, loaded.model, weights, tokenizer=tokenizer, metadata=metadata, card=True)
    return ModelCard.load(folder / "README.md", ignore_metadata_errors=False)


def test_a_card_tells_hubs_and_people_what_is_known(tiny, tmp_path):
    card = saved(
        tiny,
        tmp_path / "tuned",
        model="owner/Model-1B",
        commands=["python -m pvopt tune --model owner/Model-1B", "echo ``` |"],
        evaluations=EVALUATIONS,
        inputs={"text": "/home/me/train.txt", "eval_text": None},
        settings={"recipe": "ste", "steps": 9},
    )
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("owner/Model-1B", "quantized")
    assert data["tags"] == ["pvopt", "quantized", "2-bit", "native"]
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("perplexity", 30.25)
    assert result.dataset_name == "the held-out tenth of train.txt"
    for shown in (
        "# owner/Model-1B, 3.00 bits per weight",
        "| codes alone | 2.00 |",
        "| with codebooks and scales, in 16 bits | 3.00 |",
        "| with codebooks and scales, as they were tuned | 4.00 |",
        "| original | 0 | 20 | 3 |  |",
        "| quantized | 9 | 30.25 | 3.4 | 0.4 |",
        "3 windows of 64 tokens, computed in float32",
        "````sh\npython -m pvopt tune --model owner/Model-1B\necho ``` |\n````",
        "Tuned: recipe ste, steps 9.",
        "| `grid:2g32` | 14 | `model.layers.0.self_attn.q_proj.weight` ... |",
        "`model.embed_tokens.weight` (an embedding)",
        "python -m pvopt generate --checkpoint tuned",
    ):
        assert shown in card.content


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"model": "/home/me/models/mine"},
        {"model": "tiny-llama", "evaluations": [{**EVALUATIONS[1], "perplexity": None}]},
        {"model": ["x"], "commands": "ls", "evaluations": [3, {}, {"model": 2}], "settings": []},
        {"inputs": 3, "evaluations": [{"model": "other | model\n\n# no", "step": "|"}]},
        {"model": "/<script>x</script>", "inputs": {"text": "<b>"}, "evaluations": EVALUATIONS[:1]},
        {"model": "a\n---\nb", "calibration": {"text": "| a |\n"}, "commands": [1, "a\nb"]},
    ],
)
def test_what_is_not_known_is_left_out(tiny, tmp_path, metadata):
    card = saved(tiny, tmp_path / "x", **metadata)
    assert "base_model" not in card.data.to_dict()
    assert card.data.eval_results is None
    assert "\n# no" not in card.content
    assert card.text.count("\n# ") == 1
    assert "<" not in card.text.partition(" -->\n")[2]  # past the line by which edits are noticed


def test_an_edited_card_stays_and_the_checkpoint_with_it(tiny, tmp_path):
    folder, file = tmp_path / "x", tmp_path / "x" / "README.md"
    saved(tiny, folder, model="first")
    saved(tiny, folder, model="second")
    ours = file.read_text()
    assert "# second, " in ours
    file.write_text(ours + "and mine\n")
    load(folder)  # whoever edits a card damages no checkpoint
    load_tokenizer(folder)
    for card in (True, False):
        save(folder, *_parts(tiny), card=card)
        assert file.read_text() == ours + "and mine\n"
    file.write_text("mine")
    saved(tiny, folder)
    assert file.read_text() == "mine"
    file.write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="is not UTF-8 text"):
        saved(tiny, folder)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match="is a FIFO"):
        saved(tiny, folder)
    file.unlink()
    save(folder, *_parts(tiny))
    assert not file.exists()


def _parts(tiny):
    return tiny[0].model, tiny[1]


def test_the_folder_of_somebody_else_keeps_its_card(tiny, tmp_path):
    (tmp_path / "README.md").write_text("about me")
    with pytest.raises(CheckpointError, match="exists and holds something else"):
        saved(tiny, tmp_path)
    assert (tmp_path / "README.md").read_text() == "about me"


def test_a_plain_module_has_a_card(tmp_path):
    model = torch.nn.Linear(8, 4)
    save(tmp_path / "x", model, pvopt.quantize_(model, pvopt.UniformGrid(bits=2)), card=True)
    card = ModelCard.load(tmp_path / "x" / "README.md")
    assert 'pvopt.formats.load("x", model)' in card.content
    assert "pipeline_tag" not in card.data.to_dict()


def test_commands_and_exports_carry_the_way_along(tmp_path, capsys):
    start, out = tmp_path / "start", tmp_path / "out"
    quantize = ["quantize", "--model", "tiny-llama", "--format", "grid:2g32s", "--out", str(start)]
    export = ["export", "--checkpoint", str(start), "--to", "compressed-tensors", "--out", str(out)]
    assert main(quantize) == 0
    assert main(export) == 0
    assert capsys.readouterr().out.endswith(f"next: vllm serve {out}\n")
    card = ModelCard.load(out / "README.md")
    lines = [line for line in card.content.splitlines() if line.startswith("python -m pvopt")]
    assert [line.split()[3] for line in lines] == ["quantize", "export"]
    assert "vllm serve out" in card.content
    assert card.data.tags[-1] == "compressed-tensors"
    (out / "README.md").write_text("mine")
    assert main(export) == 0
    assert (out / "README.md").read_text() == "mine"
