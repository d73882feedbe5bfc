"""Files of compressed-tensors: their own loader reads what we write, we read what it does."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from exports import in_dtype, logits, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pvopt
from pvopt.formats import CheckpointError, load, save
from pvopt.formats.compressed_tensors.layers import read_layer, write_layer
from pvopt.formats.integer_grids import IntegerGrid, StoredGrid

pytest.importorskip("transformers", reason="the extra llm is not installed")

FORMATS = ["grid:2g16s", "grid:3g16z", "grid:4s", "grid:8g8z", "ternary:g16", "binary"]


@pytest.mark.parametrize("text", FORMATS)
def test_what_is_written_is_read_back(tmp_path, text):
    model, weights = tiny(text)
    back = load(save(tmp_path / "x", model, weights, format="compressed-tensors"))
    assert back.weights.keys() == weights.keys()
    for name, rep in weights.items():
        assert torch.equal(back.weights[name].decode(), rep.decode())
    assert torch.equal(logits(back.model), logits(model))
    again = load(save(tmp_path / "y", back.model, back.weights, format="compressed-tensors"))
    assert torch.equal(logits(again.model), logits(model))


# Zero points: without this flag transformers 5.24 expects them unpacked, and refuses its own files.
@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", ["grid:2g16s", "grid:3g16z"])
def test_transformers_computes_the_same_logits(tmp_path, text, dtype):
    pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is missing")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    model, weights = tiny(text, dtype)
    folder = save(tmp_path / "x", model, weights, format="compressed-tensors")
    flag = {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, **flag if text[-1] == "z" else {})
    found = logits(theirs)  # it decompresses then
    for name, parameter in model.named_parameters():
        assert theirs.get_parameter(name).dtype == dtype
        assert torch.equal(theirs.get_parameter(name), parameter)
    if dtype == torch.float32:  # else our model's own tables of angles are rounded, too
        assert torch.equal(found, logits(model))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    bits=st.integers(2, 8),
    rows=st.integers(1, 40),
    groups=st.integers(1, 4),
    size=st.sampled_from([1, 3, 8, 16]),
    symmetric=st.booleans(),
)
def test_layers_are_packed_as_their_package_packs(seed, bits, rows, groups, size, symmetric):
    draws = torch.Generator().manual_seed(seed)
    stored = StoredGrid(bits=bits, group_size=size, symmetric=symmetric)
    integers = torch.randint(1 << bits, (rows, groups * size), generator=draws)
    zeros = None if symmetric else torch.randint(1 << bits, (rows, groups), generator=draws)
    grid = IntegerGrid(stored, integers, torch.randn(rows, groups, generator=draws), zeros)
    tensors = write_layer("x", grid)
    back = read_layer("x", stored, tensors)
    assert torch.equal(back.integers.long(), integers)
    assert zeros is None or torch.equal(back.zeros.long(), zeros)
    assert torch.equal(back.decode(), back.representation().decode())
    peer = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    offset = 1 << (bits - 1)
    theirs = peer.pack_to_int32((integers - offset).to(torch.int8), bits)
    assert torch.equal(tensors["x.weight_packed"], theirs)
    if zeros is not None:
        theirs = peer.pack_to_int32((zeros - offset).to(torch.int8), bits, packed_dim=0)
        assert torch.equal(tensors["x.weight_zero_point"], theirs)


def test_layers_may_differ_where_servers_do_not_join_them(tmp_path):
    spec = {"*_proj": pvopt.parse_scheme("grid:2g16s"), "*down_proj": pvopt.parse_scheme("grid:4s")}
    model, weights = tiny(dict(reversed(spec.items())))
    folder = save(tmp_path / "x", model, weights, format="compressed-tensors")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    groups = {g["weights"]["num_bits"]: len(g["targets"]) for g in config["config_groups"].values()}
    assert groups == {2: 12, 4: 2}
    assert torch.equal(logits(load(folder).model), logits(model))


def test_files_are_cut_and_put_together(tmp_path, monkeypatch):
    from pvopt.formats import shards

    model, weights = tiny("grid:2g16s")
    monkeypatch.setitem(shards.write_shards.__kwdefaults__, "most_bytes", 30_000)
    folder = save(tmp_path / "x", model, weights, format="compressed-tensors")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert torch.equal(logits(load(folder).model), logits(model))
    files[0].unlink()
    with pytest.raises(CheckpointError, match=r"-00001-of-\d+.safetensors: is missing"):
        load(folder)


def with_spec(text: str) -> Any:
    return lambda: tiny(text)


def joined() -> Any:
    return tiny(
        {"*q_proj": pvopt.parse_scheme("grid:2s"), "*k_proj": pvopt.parse_scheme("grid:4s")}
    )


def two_dtypes() -> Any:
    model, weights = tiny("grid:2s")
    return model, in_dtype(weights, torch.float16)


def plain() -> Any:
    model = nn.Linear(8, 8)
    return model, pvopt.quantize_(model, pvopt.UniformGrid(bits=2, symmetric=True))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_spec("grid:2g16"), "its zero points are no integers: take a symmetric grid"),
        (with_spec("vq:4g2"), "only integers times a scale can be stored"),
        (with_spec("grid:1s"), "grids of one bit cannot be stored"),
        (with_spec("had+grid:2s"), "its space Rotation"),
        (joined, r"'model.layers.0.self_attn.q_proj' and .*_proj' are stored in different ways"),
        (two_dtypes, "its values are torch.float16 and the layer's weight torch.float32"),
        (plain, "only models of transformers can, got Linear"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, make, reason):
    model, weights = make()
    with pytest.raises(CheckpointError, match=reason):
        save(tmp_path / "x", model, weights, format="compressed-tensors")
    assert not (tmp_path / "x").exists()


def test_the_models_of_others_are_not_replaced(tmp_path):
    model, weights = tiny("grid:2s")
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="it is not replaced"):
        save(tmp_path / "theirs", model, weights, format="compressed-tensors")
    ours = save(tmp_path / "ours", model, weights, format="compressed-tensors")
    (ours / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"holds more than a checkpoint \(notes.txt\)"):
        save(ours, model, weights, format="dense")


def changed(folder: Any, change: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))


def group(**settings: Any) -> Any:
    return lambda config: config["config_groups"]["group_0"]["weights"].update(settings)


def target(text: str) -> Any:
    return lambda config: config["config_groups"]["group_0"].update(targets=[text])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (group(num_bits=4), "must be int32 for .* integers of 4 bits"),
        (group(num_bits=2.0), r"num_bits of 'model.* must be in 2..8, got 2.0"),
        (group(group_size=0), "group_size of .* must be a positive integer, got 0"),
        (group(group_size=32), "weight_scale must be floats of shape"),
        (group(symmetric=False), "weight_zero_point' is missing"),
        (group(symmetric="no"), "symmetric of .* must be true or false, got 'no'"),
        (group(type="float"), "must be static integers"),
        (group(actorder="group"), "must be static integers"),
        (target("re:" + "(a*)*" * 20), "targets must be plain patterns"),
        (target("re:("), "targets must be patterns"),
        (target("Conv2d"), "config_groups has none for the layer"),
        (lambda config: config.update(config_groups=[]), "config_groups has none for the layer"),
        (lambda config: config.update(format="marlin-24"), "format must be 'pack-quantized'"),
    ],
)
def test_damaged_and_foreign_folders_are_refused(tmp_path, change, reason):
    model, weights = tiny("grid:2g16s")
    folder = save(tmp_path / "x", model, weights, format="compressed-tensors")
    changed(folder, change)
    with pytest.raises(CheckpointError, match=reason):
        load(folder)


@pytest.mark.parametrize("text", ["re:.*_proj$", "re:model.layers.[0-9]", "Linear"])
def test_layers_are_found_by_name_pattern_and_class(tmp_path, text):
    model, weights = tiny("grid:2g16s")
    folder = save(tmp_path / "x", model, weights, format="compressed-tensors")
    changed(folder, target(text))
    if "[" in text:
        with pytest.raises(CheckpointError, match="targets must be plain patterns"):
            load(folder)
    else:
        assert torch.equal(logits(load(folder).model), logits(model))


def test_dense_files_are_those_of_the_decoded_model(tmp_path):
    from transformers import AutoModelForCausalLM

    model, weights = tiny("2x3g4")
    folder = save(tmp_path / "x", model, weights, format="dense")
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(theirs), logits(model))
