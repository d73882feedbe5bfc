"""Files of EXL3: read tile by tile by a decoder of their facts, and by us what others may write."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", reason="the extra llm is not installed")

from exports import draw, drawn, logits, tiny
from torch import Tensor, nn

import pvopt
from pvopt.formats import CheckpointError, load, save
from pvopt.formats.exl3 import EXL3Format
from pvopt.formats.exl3.canonical import canonical_space, canonical_trellis
from pvopt.formats.exl3.layers import PARTS, read_layer, write_layer
from pvopt.starts import GPTQ

CONSTANTS = {"3inst": None, "mcg": 0xCBAC1FED, "mul1": 0x83DCD12D}
LAYER = "model.layers.0.self_attn.q_proj"


def value_of(code: str, state: int) -> float:
    """The formulas in NumPy's halves."""
    if code == "mul1":
        x = 0x83DCD12D * state & 0xFFFFFFFF
        total = sum(x >> shift & 255 for shift in (0, 8, 16, 24))
        number = np.array([0x6400 + total], dtype=np.uint16).view(np.float16)[0]
        factor, offset = np.array([0x1EEE, 0xC931], dtype=np.uint16).view(np.float16)
        return float(np.float16(float(number) * float(factor) + float(offset)))
    x = 0xCBAC1FED * state if code == "mcg" else 89226354 * state + 64248484
    kept = np.array([x & 0x8FFF8FFF], dtype=np.uint32) ^ np.uint32(0x3B603B60)
    low, high = kept.view(np.float16)
    return float(low + high)


def inner(words: Tensor, code: str) -> NDArray[Any]:
    """Decode the tiles of a file, ``[inputs, outputs]``, bit by bit."""
    rows, columns, width = words.shape
    bits, found = width // 16, np.empty((16 * rows, 16 * columns))
    table: dict[int, float] = {}
    for i in range(rows):
        for j in range(columns):
            halves = words[i, j].numpy().view(np.uint16).reshape(-1, 2)[:, ::-1].flatten()
            circle = "".join(format(int(half), "016b") for half in halves) * 2
            for t in range(256):
                end = len(circle) // 2 + bits * (t + 1)
                state = int(circle[end - 16 : end], 2)
                if state not in table:
                    table[state] = value_of(code, state)
                lane, place = divmod(t, 8)
                row = 2 * (lane % 4) + (0, 1, 8, 9)[place % 4]
                column = lane // 4 + 8 * (place // 4)
                found[16 * i + row, 16 * j + column] = table[state]
    return found


def hadamard(blocks: int) -> NDArray[Any]:
    block = np.ones((1, 1))
    for _ in range(7):
        block = np.kron(block, [[1, 1], [1, -1]])
    return np.kron(np.eye(blocks), block / math.sqrt(128))


@pytest.mark.parametrize("code", CONSTANTS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_layers_decode_as_the_format_says(bits, code):
    shape = (200, 130) if bits == 2 else (16, 128)
    rep = draw(pvopt.Scheme(canonical_trellis(bits, code), canonical_space()), shape, bits)
    tensors = write_layer("x", rep)
    words, suh, svh = (tensors[f"x{part}"] for part in PARTS[:3])
    size = -(-shape[0] // 128) * 128, -(-shape[1] // 128) * 128
    assert words.shape == (size[1] // 16, size[0] // 16, 16 * bits)
    wanted = inner(words, code)
    tiles = rep.layout.merge(rep.parametrization.decode_groups(rep))
    assert np.array_equal(tiles.numpy().T, wanted)  # every weight of every tile
    left, right = hadamard(size[1] // 128), hadamard(size[0] // 128)
    dense = suh.double().numpy()[:, None] * (left @ wanted @ right) * svh.double().numpy()
    cut = torch.from_numpy(dense.T[: shape[0], : shape[1]]).float()
    torch.testing.assert_close(rep.decode(), cut, rtol=1e-5, atol=1e-5)
    named = {part for part in ("mcg", "mul1") if f"x.{part}" in tensors}
    assert named == ({code} if CONSTANTS[code] else set())
    if named:
        assert int(tensors[f"x.{code}"]) & 0xFFFFFFFF == CONSTANTS[code]
    back = read_layer("x", tensors)
    assert torch.equal(back.codes["symbols"], rep.codes["symbols"])
    again = write_layer("x", back)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def same(mine: Any, theirs: Any) -> None:
    """Codes and values are the same, and so are the decoded weights."""
    assert mine.keys() == theirs.keys()
    for name, rep in mine.items():
        other = theirs[name]
        assert other.scheme == rep.scheme
        for (key, tensor), (_, found) in zip(rep.tensors(), other.tensors(), strict=True):
            assert torch.equal(tensor, found), (name, key)
        assert torch.equal(rep.decode(), other.decode())


def test_what_is_written_is_read_back(tmp_path):
    """Bits and codes of each layer its own, some layers dense, sizes of 64 filled up to 128."""
    model, weights = drawn({"q_proj": (2, "mul1"), "mlp": (3, "mcg"), "o_proj": (1, "3inst")})
    folder = save(tmp_path / "x", model, weights, format="exl3")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "exl3"
    assert (config["bits"], config["codebook"]) == (2.4, "mixed")
    stored = json.loads((folder / "quantization_config.json").read_text())["tensor_storage"]
    tensors = load_file(folder / "model.safetensors")
    assert {name for part in stored.values() for name in part["stored_tensors"]} == {*tensors}
    assert stored[LAYER]["bits_per_weight"] == 2
    assert stored[LAYER]["mul1_multiplier"] == CONSTANTS["mul1"]
    assert stored[LAYER]["stored_tensors"][f"{LAYER}.trellis"] == {
        "shape": [8, 8, 32],
        "n_bytes": 4096,
        "dtype": "torch.int16",
    }
    back = load(folder)
    same(weights, back.weights)
    assert torch.equal(logits(back.model), logits(model))
    again = load(save(tmp_path / "y", back.model, back.weights, format="exl3"))
    assert load_file(tmp_path / "y" / "model.safetensors").keys() == tensors.keys()
    same(weights, again.weights)


def test_biases_and_a_head_of_its_own(tmp_path):
    """Outputs are filled up, biases too; a quantized head is no embedding, whatever was tied."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config).eval()
    nn.init.normal_(model.model.layers[0].self_attn.k_proj.bias)
    model, weights = drawn({"k_proj": (2, "mul1"), "lm_head": (4, "mul1")}, model)
    folder = save(tmp_path / "x", model, weights, format="exl3")
    bias = load_file(folder / "model.safetensors")["model.layers.0.self_attn.k_proj.bias"]
    assert bias.shape == (128,)
    assert bool((bias[8:] == 0).all())
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    assert settings["quantization_config"]["head_bits"] == 4
    file.write_text(json.dumps({**settings, "tie_word_embeddings": True}))  # as of the original
    back = load(folder)
    same(weights, back.weights)
    ids = torch.arange(8)[None]
    assert torch.equal(back.model(ids).logits, model(ids).logits)
    tied = Qwen2ForCausalLM(Qwen2Config(**{**config.to_dict(), "tie_word_embeddings": True}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight and model.embed_tokens.w"):
        load(folder, tied)


@pytest.mark.parametrize(
    "text",
    [
        "had128[seed=7]+trellis:2l16@mma/tensor",
        "scale:out[weighted=False]+had128+trellis:3l16-mcg@mma/tensor",
        "pad128x128+scale:in+had128+trellis:1l16-3inst@mma/tensor",
    ],
)
def test_other_rotations_and_scales_take_the_one_form_that_is_stored(text):
    """With the same codes, and the same weights up to the rounding of a product of scales."""
    rep = draw(pvopt.parse_scheme(text), (128, 256))
    plain = EXL3Format().prepared(rep)
    assert torch.equal(plain.codes["symbols"], rep.codes["symbols"])
    assert torch.equal(plain.decode(), rep.decode())
    assert plain.space == canonical_space()
    assert torch.equal(read_layer("x", write_layer("x", plain)).decode(), rep.decode())
    rep.values["scales"].fill_(0.3)
    assert "is to be one of the outputs' scales" in str(EXL3Format().refusal(None, rep))
    folded = EXL3Format().prepared(rep)
    torch.testing.assert_close(folded.decode(), rep.decode(), rtol=1e-5, atol=1e-6)
    assert folded.values["scales"] == 1
    assert EXL3Format().kind(folded.scheme) == rep.parametrization


def test_a_start_in_the_space_of_the_format():
    """With the metric of a layer's inputs, and without; a window of a V step keeps to the space."""
    scheme = pvopt.parse_scheme("pad128x128[free=False]+scale:in-out[weighted=False]+had128+vq:2g2")
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 24, generator=draws) * torch.logspace(-2, 1, 24)
    inputs = torch.randn(64, 24, generator=draws) @ torch.randn(24, 24, generator=draws)
    metric = pvopt.Row(inputs.T @ inputs)
    rep = scheme.fit(weight)
    started = GPTQ().start(weight, scheme, metric=metric)
    assert metric.relative_error(weight, started.decode()) < 0.9 * metric.relative_error(
        weight, rep.decode()
    )
    target = weight + 0.3 * weight.abs().mean() * torch.randn(20, 24, generator=draws)
    before, goal = rep.split(rep.decode()), rep.split(target)
    region = pvopt.TrustRegion(0.1)
    moved = pvopt.v_step(
        rep, target, rounding=pvopt.Nearest(), subspace=pvopt.Greedy(0.1), trust_region=region
    )
    assert 0 < int(moved) <= 0.1 * rep.num_groups
    assert (rep.split(rep.decode()) - goal).norm() < (before - goal).norm()


def rounded() -> Any:
    model, weights = drawn({LAYER: (2, "mul1")})
    weights[f"{LAYER}.weight"].values["space.1.input_scales"][3] = 0.1
    weights.write_()
    return model, weights


def in_halves() -> Any:
    model, weights = drawn({LAYER: (2, "mul1")})
    half = {name: rep.to(dtype=torch.float16) for name, rep in weights.items()}
    found = pvopt.QuantizedWeights(model.half(), half)
    found.write_()
    return model, found


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: tiny("grid:2g16s"), "only trellises can be stored .pad128x128"),
        (rounded, "its scales of inputs are no float16 numbers .such as 0.1"),
        (in_halves, "it is decoded in float32, its values are torch.float16"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, make, reason):
    model, weights = make()
    with pytest.raises(CheckpointError, match=reason):
        save(tmp_path / "x", model, weights, format="exl3")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("had128+trellis:2l12@mma/tensor", "its states have 12 bits, pad128x128.* can be stored"),
        ("had128+trellis:2l16-1mad@mma/tensor", "its code is 1mad"),
        ("had128+trellis:2l16-hyb@mma/tensor", "its code is hyb"),
        ("had128+trellis:2l16@16x16/tensor", "its tiles are not those of matrix units"),
        ("had128+trellis:2l16@mma", "it has scales for its rows inside of the rotation"),
        ("trellis:2l16@mma/tensor", "its space is the weight"),
        ("had+trellis:2l16@mma/tensor", "its space is had,"),
        ("had64+trellis:2l16@mma/tensor", "its space is had64,"),
        ("perm+had128+trellis:2l16@mma/tensor", r"its space is perm\+had128"),
        ("had128+scale:in+trellis:2l16@mma/tensor", r"its space is had128\+scale:in"),
        ("pad256+had128+trellis:2l16@mma/tensor", r"its space is pad256\+had128"),
    ],
)
def test_schemes_that_cannot_be_stored_say_what_can(text, reason):
    with pytest.raises(ValueError, match=reason):
        EXL3Format().kind(pvopt.parse_scheme(text))


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("trellis", lambda t: t.int(), "q_proj.trellis must be torch.int16 of shape"),
        ("trellis", lambda t: t[0], "q_proj.trellis must be torch.int16 of shape"),
        ("trellis", lambda t: t[:, :, :24].contiguous(), "24 words in a tile, 1.5 bits of a weig"),
        ("trellis", lambda t: t.repeat(1, 1, 5), "160 words in a tile, 10 bits of a weight; 1, 2"),
        ("trellis", lambda t: t[:4].contiguous(), "has 64 channels, no multiple of 128"),
        ("trellis", lambda t: t[:0].contiguous(), "has 0 channels, no multiple of 128"),
        ("trellis", lambda t: t.repeat(2, 1, 1), r"suh must be torch.float16 of shape \[256\]"),
        ("trellis", None, "holds no layer with .trellis"),
        ("suh", None, "the tensor 'model.*q_proj.suh' is missing"),
        ("svh", lambda t: t[:64].clone(), r"svh must be torch.float16 of shape \[128\]"),
        ("svh", lambda t: t.float(), "svh must be torch.float16 .* got torch.float32"),
        ("svh", lambda t: t * math.nan, "q_proj: space.1.output_scales must be finite"),
        ("suh", lambda t: t / 0, "q_proj: space.1.input_scales must be finite"),
        ("mul1", lambda t: t + 1, "q_proj.mul1 must be 0x83dcd12d, got 0x83dcd12e"),
        ("mul1", lambda t: t.float(), "q_proj.mul1 must be one torch.int32"),
        (
            "mcg",
            lambda _: torch.tensor(0xCBAC1FED - (1 << 32)).int(),
            "must name one code, got mcg",
        ),
        ("weight", lambda _: torch.zeros(64, 64), "q_proj.weight twice, quantized and dense"),
    ],
)
def test_damaged_tensors_are_refused(tmp_path, part, change, reason):
    folder = save(tmp_path / "x", *drawn({LAYER: (2, "mul1")}), format="exl3")
    file, name = folder / "model.safetensors", f"{LAYER}.{part}"
    tensors = load_file(file)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors.get(name))
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=reason) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_layers_of_another_size_are_refused(tmp_path):
    folder = save(tmp_path / "x", *drawn({LAYER: (2, "mul1")}), format="exl3")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[f"{LAYER}.trellis"] = tensors[f"{LAYER}.trellis"].repeat(2, 1, 1)
    tensors[f"{LAYER}.suh"] = tensors[f"{LAYER}.suh"].repeat(2)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"is stored with the shape \[128, 256\], the model"):
        load(folder)
