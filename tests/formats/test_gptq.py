"""Files of GPTQ: their own loader reads what we write, we read what it does."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from exports import in_dtype, logits, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import pvopt
from pvopt.formats import CheckpointError, StoredGrid, load, save
from pvopt.formats.gptq import GPTQFormat
from pvopt.formats.gptq.layers import GPTQGrid, read_layer, write_layer

pytest.importorskip("transformers", reason="the extra llm is not installed")

FORMATS = ["grid:2g16s", "grid:3g32z", "grid:4s", "grid:8g8z", "ternary:g16", "perm+grid:4g16z"]


@pytest.mark.parametrize("text", FORMATS)
def test_what_is_written_is_read_back(tmp_path, text):
    model, weights = tiny(text)
    folder = save(tmp_path / "x", model, weights, format="gptq")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["desc_act"] == text.startswith("perm")
    assert config["checkpoint_format"] == ("gptq_v2" if text.endswith("z") else "gptq")
    back = load(folder)
    assert back.weights.keys() == weights.keys()
    for name, rep in weights.items():
        assert torch.equal(back.weights[name].decode(), rep.decode())
    assert torch.equal(logits(back.model), logits(model))
    again = load(save(tmp_path / "y", back.model, back.weights, format="gptq"))
    assert torch.equal(logits(again.model), logits(model))


def plainly(kind: GPTQGrid, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Decode a layer bit by bit, in Python's integers."""
    bits, scales = kind.grid.bits, tensors["x.scales"].double()

    def column(words: torch.Tensor) -> list[int]:
        whole = sum((int(w) & 0xFFFFFFFF) << (32 * i) for i, w in enumerate(words.tolist()))
        count = len(words) * 32 // bits
        return [whole >> (bits * i) & ((1 << bits) - 1) for i in range(count)]

    integers = torch.tensor([column(words) for words in tensors["x.qweight"].T])  # [out, in]
    zeros = torch.tensor([column(words) for words in tensors["x.qzeros"]])  # [groups, out]
    zeros = zeros + int(kind.version == "gptq")
    groups = tensors["x.g_idx"].long()
    return (integers - zeros[groups].T) * scales[groups].T


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    bits=st.sampled_from([2, 3, 4, 8]),
    groups=st.integers(1, 3),
    symmetric=st.booleans(),
    moving=st.booleans(),
)
def test_layers_decode_as_their_format_says(seed, bits, groups, symmetric, moving):
    draws = torch.Generator().manual_seed(seed)
    weight = torch.randn(32, 32 * groups, generator=draws)
    grid = pvopt.UniformGrid(
        bits=bits, group_size=32, symmetric=symmetric, integer_zeros=not symmetric
    )
    space = pvopt.Permutation() if moving else pvopt.Identity()
    rep = pvopt.Scheme(grid, space).fit(weight)
    kind = GPTQGrid(
        grid=StoredGrid(bits=bits, group_size=32, symmetric=symmetric),
        moving=moving,
        version="gptq" if symmetric else "gptq_v2",
    )
    tensors = write_layer("x", kind, rep)
    torch.testing.assert_close(plainly(kind, tensors), rep.decode().double())
    back = read_layer("x", kind, tensors)
    assert torch.equal(back.decode(), rep.decode())
    # The first version of files with zero points: ours are one more there.
    if not symmetric and int(back.codes["zeros"].max()) + 1 < 1 << bits:
        first = GPTQGrid(grid=kind.grid, moving=moving, version="gptq")
        torch.testing.assert_close(
            read_layer("x", first, tensors).decode().double(), plainly(first, tensors)
        )


@pytest.mark.filterwarnings("ignore")  # of a package that asks for torch's next release
@pytest.mark.parametrize("text", ["grid:4g32s", "grid:2g32z", "perm+grid:4g32z"])
def test_transformers_computes_the_same_logits(tmp_path, text):
    pytest.importorskip("gptqmodel", reason="the package gptqmodel is missing")
    from transformers import AutoModelForCausalLM

    model, weights = tiny(text, torch.float16)
    folder = save(tmp_path / "x", model, weights, format="gptq")
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    # Both in float16, its products in another order.
    torch.testing.assert_close(logits(theirs), logits(model), rtol=2e-2, atol=2e-2)


def mixed() -> Any:
    grids = {bits: pvopt.parse_scheme(f"grid:{bits}s") for bits in (2, 4)}
    return tiny({"*q_proj": grids[2], "*k_proj": grids[4]})


def one_block() -> Any:
    return tiny({"*.0.*_proj": pvopt.parse_scheme("grid:4s")})


def halves() -> Any:
    model, weights = tiny("grid:2s")
    return model, in_dtype(weights, torch.float16)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: tiny("grid:2g16"), "its zero points are no integers: take a symmetric grid"),
        (lambda: tiny("grid:5g16s"), "only 2, 3, 4 and 8 bits can be stored, it has 5"),
        (lambda: tiny("2x4g8"), "only integers times a scale can be stored"),
        (lambda: tiny("had+grid:2s"), "its space Rotation"),
        (mixed, "all layers must have the same bits, groups and zero points"),
        (one_block, "the same layers must be quantized in every block"),
        (halves, "its values are torch.float16 and the layer's weight torch.float32"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, make, reason):
    model, weights = make()
    with pytest.raises(CheckpointError, match=reason):
        save(tmp_path / "x", model, weights, format="gptq")
    assert not (tmp_path / "x").exists()


def test_weights_that_fill_no_words_are_refused():
    weight = torch.randn(32, 24, generator=torch.Generator().manual_seed(0))
    writer = GPTQFormat()
    rep = pvopt.UniformGrid(bits=2, symmetric=True).fit(weight)
    reason = writer.refusal(writer.kind(rep.scheme), rep)
    assert reason == "its 24 inputs of 2 bits do not fill words of 32 bits"


def test_some_layers_of_every_block_may_stay_dense(tmp_path):
    model, weights = tiny({"*[qkv]_proj": pvopt.parse_scheme("grid:4g16s")})
    folder = save(tmp_path / "x", model, weights, format="gptq")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    names = [f"self_attn.{n}_proj" for n in "kqv"]
    assert config["modules_in_block_to_quantize"] == [names]
    assert torch.equal(logits(load(folder).model), logits(model))


def setting(**values: Any) -> Any:
    return lambda config: config.update(values)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (setting(bits=5), r"bits must be one of \(2, 3, 4, 8\), got 5"),
        (setting(bits=4), "scales must have shape"),
        (setting(group_size=0), "group_size must be a positive integer or -1, got 0"),
        (setting(group_size=32), "scales must have shape"),
        (setting(sym=True), "qzeros must be 2 everywhere, as sym says"),
        (setting(checkpoint_format="marlin"), "checkpoint_format must be one of"),
        (setting(dynamic={"+:x": {"bits": 8}}), "dynamic settings"),
        (setting(bits=2.0), r"bits must be one of \(2, 3, 4, 8\), got 2.0"),
        (setting(sym=None), "sym must be true or false, got None"),
        (setting(desc_act="no"), "desc_act must be true or false, got 'no'"),
    ],
)
def test_damaged_and_foreign_folders_are_refused(tmp_path, change, reason):
    model, weights = tiny("grid:2g16z")
    folder = save(tmp_path / "x", model, weights, format="gptq")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=reason):
        load(folder)


LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (f"{LAYER}.scales", lambda t: t * math.nan, "q_proj: scales must be finite"),
        (f"{LAYER}.scales", lambda t: t / 0, "q_proj: scales must be finite"),
        (f"{LAYER}.scales", lambda t: t.to(torch.float8_e4m3fn), "scales must be 16, 32 or 64"),
        (f"{LAYER}.g_idx", lambda t: t > 0, "g_idx must be 64 integers, got torch.bool"),
        (f"{LAYER}.g_idx", lambda t: -t - 1, "g_idx must name each group 16 times"),
        (f"{LAYER}.weight", lambda _: torch.zeros(64, 64), "q_proj.weight twice, quantized and"),
        ("model.norm.weight", lambda t: t.int(), "norm.weight must hold floats, got torch.int32"),
    ],
)
def test_damaged_tensors_are_refused(tmp_path, name, change, reason):
    folder = save(tmp_path / "x", *tiny("grid:2g16z"), format="gptq")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, name: change(tensors.get(name))}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=reason):
        load(folder)
