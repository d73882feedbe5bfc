"""Files of llama.cpp: it computes what we do, and its package decodes what we write."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutating import bounded, edits

pytest.importorskip("transformers", reason="the extra llm is not installed")

from exports import IDS, in_dtype, logits, tiny
from llama_cpp import LlamaCpp

import pvopt
from pvopt.formats import CheckpointError, load, load_tokenizer, save
from pvopt.formats.gguf.blocks import BLOCKS, Blocks, BlockType
from pvopt.formats.gguf.representations import blocks_of, fitting_type, representation_of
from pvopt.llm import load_model

MUTATIONS = int(os.environ.get("PVOPT_MUTATIONS", "300"))

# Formats, and the blocks they are stored in where groups of 256 fit.
STORED = {
    "binary:g128": "Q1_0",
    "binary": "Q1_0",
    "binary:g32": "Q4_0",
    "ternary:g256": "TQ1_0",
    "ternary:g64": "Q2_0",
    "grid:1g64s": "Q2_0",
    "grid:2g64s": "Q2_0",
    "grid:2g32s": "Q4_0",
    "grid:2g64z": "Q4_0",
    "grid:3s": "Q4_0",
    "grid:4g32s": "Q4_0",
    "affine:4g32": "Q4_1",
    "affine:2": "Q4_1",
    "grid:4g32z": "Q8_0",
    "grid:8g32s": "Q8_0",
}


def wide(spec: Any) -> tuple[Any, pvopt.QuantizedWeights]:
    """Return a Llama with rows of 256, of one layer, and scales that float16 has."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=259,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_theta=500.0,
        rms_norm_eps=1e-4,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    return quantized(model, spec)


def quantized(model: Any, spec: Any) -> tuple[Any, pvopt.QuantizedWeights]:
    if isinstance(spec, str):
        spec = pvopt.parse_scheme(spec)
    weights = pvopt.quantize_(model, spec, options=pvopt.FitOptions(iterations=1))
    return model, in_dtype(in_dtype(weights, torch.float16), torch.float32)


def small(spec: Any) -> tuple[Any, pvopt.QuantizedWeights]:
    """Return a Llama of two layers with tied embeddings."""
    return quantized(load_model("tiny-llama").model, spec)


def tokenizer() -> Any:
    return load_model("tiny-llama").tokenizer


def written(folder: Path, model: Any, weights: Any, **more: Any) -> Path:
    return save(folder, model, weights, format="gguf", **more) / "model.gguf"


# Blocks.


def draw_blocks(block: BlockType, rows: int, number: int, seed: int) -> Blocks:
    draws = torch.Generator().manual_seed(seed)
    levels = torch.tensor(block.levels, dtype=torch.int16)
    places = torch.randint(len(levels), (rows, number * block.size), generator=draws)
    halves = torch.randn(2, rows, number, generator=draws).half()
    return Blocks(levels[places], halves[0], halves[1] if block.offsets else None)


def decoded_by_hand(block: BlockType, packed: np.ndarray) -> np.ndarray:
    """Decode the two types that the package gguf does not: bit by bit."""
    bits = {"Q1_0": 1, "Q2_0": 2}[block.name]
    rows = []
    for row in packed:
        for stored in row.reshape(-1, block.bytes):
            scale = np.float32(stored[:2].view(np.float16)[0])
            word = int.from_bytes(stored[2:].tobytes(), "little")
            codes = [word >> (bits * i) & ((1 << bits) - 1) for i in range(block.size)]
            rows += [scale * np.float32(2 * c - 1 if bits == 1 else c - 1) for c in codes]
    return np.array(rows, np.float32).reshape(len(packed), -1)


def decoded_by_peer(block: BlockType, packed: np.ndarray) -> np.ndarray:
    if block.name in ("Q1_0", "Q2_0"):
        return decoded_by_hand(block, packed)
    peer = pytest.importorskip("gguf", reason="the package gguf is missing")
    return peer.dequantize(packed, peer.GGMLQuantizationType[block.name])


@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), number=st.integers(1, 3))
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_blocks_are_decoded_as_their_package_does(block, seed, rows, number):
    blocks = draw_blocks(block, rows, number, seed)
    packed = block.pack(blocks)
    assert packed.shape == (rows, number * block.bytes)
    back = block.unpack(packed)
    assert torch.equal(back.integers, blocks.integers)
    rep = representation_of(block, back)
    theirs = torch.from_numpy(decoded_by_peer(block, packed.numpy()))
    assert torch.equal(rep.decode(), theirs)
    again = block.pack(blocks_of(rep, block))
    assert torch.equal(again, packed)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(content=st.binary(min_size=66, max_size=66))
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_any_bytes_are_decoded_alike_or_refused(block, content):
    packed = np.resize(np.frombuffer(content, np.uint8), (1, block.bytes))
    try:
        rep = representation_of(block, block.unpack(torch.from_numpy(packed)))
    except ValueError as error:
        assert "not finite" in str(error) or "have no code 3" in str(error)
    else:
        assert np.array_equal(rep.decode().numpy(), decoded_by_peer(block, packed))


@pytest.mark.parametrize(("text", "name"), STORED.items())
def test_formats_have_the_smallest_blocks_that_hold_them(text, name):
    parametrization = pvopt.parse_scheme(text).parametrization
    block = fitting_type(parametrization, 256)
    assert block.name == name
    rep = parametrization.fit(torch.randn(3, 256, generator=torch.Generator().manual_seed(1)))
    rep = rep.to(dtype=torch.float16).to(dtype=torch.float32)
    packed = block.pack(blocks_of(rep, block))
    assert torch.equal(torch.from_numpy(decoded_by_peer(block, packed.numpy())), rep.decode())


# Files.


@pytest.mark.parametrize("text", ["grid:2g64s", "grid:3s", "affine:4g32", "binary:g64"])
def test_what_is_written_is_read_back(tmp_path, text):
    model, weights = small(text)
    file = written(tmp_path / "x", model, weights, tokenizer=tokenizer())
    for path in (file, file.parent):
        back = load(path)
        assert back.weights.keys() == weights.keys()
        for name, rep in weights.items():
            assert torch.equal(back.weights[name].decode(), rep.decode())
        assert torch.equal(logits(back.model), logits(model))
        assert load_tokenizer(path).encode("Hé 12") == tokenizer().encode("Hé 12")
    again = written(tmp_path / "y", back.model, back.weights, tokenizer=load_tokenizer(path))
    assert again.read_bytes() == file.read_bytes()


def test_a_model_is_filled_in_place(tmp_path):
    model, weights = small("grid:4g32s")
    file = written(tmp_path / "x", model, weights)
    other = load_model("tiny-llama", seed=1).model
    assert load(file, other).model is other
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("make", [small, wide])
def test_transformers_computes_the_same_logits(tmp_path, make):
    """Another reader of names, settings and the order of rows; it knows no type 42."""
    pytest.importorskip("gguf", reason="the package gguf is missing")
    from transformers import AutoModelForCausalLM, GgufConfig

    model, weights = make("grid:4g32s")
    file = written(tmp_path / "x", model, weights, tokenizer=tokenizer())
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True)
    )
    for name, parameter in model.named_parameters():
        assert torch.equal(theirs.get_parameter(name), parameter)
    assert torch.equal(logits(theirs), logits(model))


def test_the_package_reads_settings_and_tensors(tmp_path):
    peer = pytest.importorskip("gguf", reason="the package gguf is missing")
    model, weights = small("grid:4g32s")
    file = written(tmp_path / "x", model, weights, tokenizer=tokenizer())
    found = peer.GGUFReader(file)
    assert found.get_field("llama.rope.freq_base").contents() == 10000.0
    assert found.get_field("tokenizer.ggml.tokens").contents()[65:68] == ["A", "B", "C"]
    names = peer.get_tensor_name_map(peer.MODEL_ARCH.LLAMA, 2)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in found.tensors}
    expected = {}
    for name, parameter in model.named_parameters():
        kind = "Q4_0" if name in weights else "F32"
        layer, _, part = name.rpartition(".")
        expected[f"{names.get_name(layer)}.{part}"] = kind
        assert parameter.dtype == torch.float32
    assert kinds == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_tensors_take_no_more_room_than_they_need(tmp_path, dtype):
    model, weights = small("grid:4g32s")
    exact = {n: p.to(dtype).float() for n, p in model.named_parameters() if n not in weights}
    with torch.no_grad():
        for name, tensor in exact.items():
            model.get_parameter(name).copy_(tensor)
    file = written(tmp_path / "x", model, weights)
    back = load(file).model
    assert all(torch.equal(back.get_parameter(n), t) for n, t in exact.items())
    embeddings = model.model.embed_tokens.weight.numel()
    assert file.stat().st_size < 50_000 + 2 * embeddings


def test_tensors_of_other_types_are_read_as_dense_ones(tmp_path):
    peer = pytest.importorskip("gguf", reason="the package gguf is missing")
    from pvopt.formats.gguf.container import read_container
    from pvopt.formats.gguf.tensors import read_tensor

    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    packed = peer.quantize(weight, peer.GGMLQuantizationType.Q5_1)
    writer = peer.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("w", packed, raw_dtype=peer.GGMLQuantizationType.Q5_1)
    writer.add_tensor("v", weight.astype(np.float64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    container = read_container(tmp_path / "x.gguf")
    found = read_tensor(container, "w", None)
    theirs = peer.dequantize(packed, peer.GGMLQuantizationType.Q5_1)
    assert np.array_equal(np.asarray(found), theirs)
    with pytest.raises(CheckpointError, match="'v' has the type 28, which is not read"):
        read_tensor(container, "v", None)


# llama.cpp.


@pytest.mark.parametrize(
    ("make", "text"),
    [
        *((small, text) for text in ("grid:2g64s", "affine:4g32", "grid:8g32s", "ternary:g64")),
        *((wide, text) for text in ("binary:g128", "ternary:g256", "grid:4g32s", "grid:2g64s")),
    ],
)
def test_llama_cpp_computes_the_same(tmp_path, make, text):
    model, weights = make(text)
    peer = LlamaCpp(written(tmp_path / "x", model, weights, tokenizer=tokenizer()))
    ids = IDS[0].tolist()
    ours = logits(model)[0, -1].log_softmax(-1)
    theirs = peer.log_probs(ids, 259)
    # It multiplies by inputs that are rounded to 8 bits per 32.
    assert float((theirs - ours).abs().max()) < 0.1
    assert float((theirs - ours).square().mean().sqrt()) < 0.03 * float(ours.std())
    for sentence in ("Hello", "Hé 12"):
        assert peer.count(sentence) == len(tokenizer().encode(sentence))
