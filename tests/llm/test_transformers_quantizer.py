"""transformers reads our folders as they are meant, or not at all."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.quantizers import auto

import pvopt
from pvopt.after_import import after_import
from pvopt.formats import CheckpointError, load, save
from pvopt.layers import QuantizedLinear, to_dense
from pvopt.llm import load_model

IDS = torch.arange(2, 40)[None]
SPEC = {
    "*.q_proj": pvopt.VectorCodebook(bits=4, group_size=4),
    "*.mlp.*": pvopt.UniformGrid(bits=3, group_size=16),
}


def checkpoint(folder, dtype=torch.float32, tied=False, metadata=None, **spec):
    source = load_model("tiny-llama", dtype=dtype)
    if tied:
        source.model.config.tie_word_embeddings = True
        source.model.lm_head.weight = source.model.model.embed_tokens.weight
    weights = pvopt.quantize_(source.model, {**SPEC, **spec}, exclude=())
    return save(folder, source.model, weights, tokenizer=source.tokenizer, metadata=metadata)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_pretrained_equals_load(dtype, tmp_path):
    folder = checkpoint(tmp_path / "x", dtype)
    expected = load(folder).model
    before = torch.get_rng_state()
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert isinstance(model.model.layers[0].self_attn.q_proj, QuantizedLinear)
    assert type(model.model.layers[0].self_attn.k_proj) is torch.nn.Linear
    assert model.dtype == dtype
    if dtype == torch.float32:  # kernels and dense products round differently
        torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-4)
    assert not model.training
    for name, rep in to_dense(model, dtype=dtype).items():
        assert torch.equal(rep.decode().to(dtype), expected.get_parameter(name))
    torch.testing.assert_close(logits(model), logits(expected), rtol=0, atol=0)


def test_weights_that_are_shared_are_decoded(tmp_path):
    grid = pvopt.UniformGrid(bits=4, group_size=16)
    folder = checkpoint(tmp_path / "x", tied=True, **{"model.embed_tokens.weight": grid})
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, load(folder).model.lm_head.weight)
    torch.testing.assert_close(logits(model), logits(load(folder).model), rtol=1e-4, atol=1e-4)


def test_without_us_transformers_refuses(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "x")
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "pvopt")
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "pvopt")
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", lambda content: content[:-1]),
        ("config.json", lambda content: content.replace(b'"silu"', b'"gelu"')),
        ("tokenizer.json", lambda content: content + b" "),
        ("pvopt.json", lambda content: content[:-3]),
    ],
)
def test_damage_is_noticed(name, change, tmp_path):
    folder = checkpoint(tmp_path / "x")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(change(content))
    assert (folder / name).read_bytes() != content
    with pytest.raises(CheckpointError, match=name):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_that_was_read_is_saved_as_it_is(tied, tmp_path):
    """Codes, values, biases, weights that were decoded, what the checkpoint said of itself."""
    grid = pvopt.UniformGrid(bits=4, group_size=16)
    spec = {"model.embed_tokens.weight": grid} if tied else {}
    folder = checkpoint(tmp_path / "x", tied=tied, metadata={"model": "tiny-llama"}, **spec)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.values.scales.mul_(2.0)  # as training does
        model.model.norm.weight.add_(1.0)
    new = tmp_path / "y"
    model.save_pretrained(new, state_dict=model.state_dict(), max_shard_size="20KB")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(new)), logits(model))
    (new / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is no file of the checkpoint"):
        AutoModelForCausalLM.from_pretrained(new)
    (new / "training_args.bin").write_bytes(b"theirs")
    model.save_pretrained(new)  # again, beside files of others
    assert (new / "training_args.bin").exists()
    assert [file.name for file in new.glob("*.safetensors")] == ["model.safetensors"]
    assert not list(new.glob(".partial*"))
    again, report = AutoModelForCausalLM.from_pretrained(new, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(again), logits(model))
    loaded = load(new)
    before = load(folder).weights
    assert loaded.metadata == {"model": "tiny-llama"}
    assert {n: r.scheme for n, r in loaded.weights.items()} == {
        n: r.scheme for n, r in before.items()
    }
    for name, rep in to_dense(model).items():
        assert torch.equal(loaded.weights[name].decode(), rep.decode())


def test_what_save_pretrained_cannot_do_is_refused(tmp_path):
    grid = pvopt.UniformGrid(bits=4, group_size=16)
    spec = {"model.embed_tokens.weight": grid}
    model = AutoModelForCausalLM.from_pretrained(checkpoint(tmp_path / "x", tied=True, **spec))
    for argument, reason in (
        ({"push_to_hub": True}, r"call model.push_to_hub\(repository\)"),
        ({"variant": "fp16"}, "variant must be None"),
        ({"state_dict": {}}, "state_dict must be that of the model"),
        ({"max_shard_size": 0}, "max_shard_size must be positive, got 0"),
    ):
        with pytest.raises(ValueError, match=reason):
            model.save_pretrained(tmp_path / "y", **argument)
        assert not list((tmp_path / "y").glob("*"))
    model.save_pretrained(tmp_path / "z", is_main_process=False)
    assert not (tmp_path / "z").exists()
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    with pytest.raises(pvopt.WeightsChangedError, match="embed_tokens"):
        model.save_pretrained(tmp_path / "y")


def test_what_is_pushed_is_read_from_the_cache_of_the_hub(tmp_path, monkeypatch):
    """Whose folders consist of links into a folder of blobs."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint(tmp_path / "x"))
    cache = tmp_path / "models--me--tiny"
    snapshot = cache / "snapshots" / "0f3"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()

    def upload(folder, repository, **_):
        for file in Path(folder).iterdir():
            (cache / "blobs" / file.name).write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")

    api = SimpleNamespace(create_repo=lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: api)
    card = SimpleNamespace(save=lambda file: Path(file).write_text("card"))
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: card)
    monkeypatch.setattr(model, "_upload_modified_files", upload, raising=False)
    model.push_to_hub("me/tiny")
    assert {file.name for file in snapshot.iterdir()} >= {"README.md", "pvopt.json", "config.json"}
    again = AutoModelForCausalLM.from_pretrained(snapshot)
    assert torch.equal(logits(again), logits(model))
    load(snapshot)
    (snapshot / "pvopt.json").unlink()
    (snapshot / "pvopt.json").symlink_to("../../../x/pvopt.json")
    with pytest.raises(CheckpointError, match=r"pvopt.json: is a link out of the folder"):
        load(snapshot)


def test_a_dense_model_of_a_checkpoint_is_saved_as_a_dense_one(tmp_path):
    model = load(checkpoint(tmp_path / "x")).model
    model.save_pretrained(tmp_path / "dense")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.equal(logits(again), logits(model))


def test_after_import(tmp_path, monkeypatch):
    (tmp_path / "some_package_of_a_test").mkdir()
    (tmp_path / "some_package_of_a_test" / "__init__.py").touch()
    (tmp_path / "some_package_of_a_test" / "part.py").write_text("x = 1")
    monkeypatch.syspath_prepend(tmp_path)
    name, calls, finders = "some_package_of_a_test.part", [], list(sys.meta_path)
    after_import(name, lambda: calls.append(sys.modules[name].x))
    importlib.import_module("some_package_of_a_test")
    assert calls == []
    module = importlib.import_module(name)
    assert calls == [1]
    assert sys.meta_path == finders
    assert importlib.reload(module) is module
    assert calls == [1]
    after_import(name, lambda: calls.append(2))
    assert calls == [1, 2]
