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

from exports import IDS, LLAMA3, in_dtype, logits, tiny, wide_llama
from llama_cpp import LlamaCpp

import pvopt
from pvopt.formats import CheckpointError, load, load_tokenizer, save
from pvopt.formats.gguf.blocks import BLOCKS, Blocks, BlockType
from pvopt.formats.gguf.representations import blocks_of, fitting_type, representation_of
from pvopt.formats.gguf.tokenizers import tokenizer_of
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
    "nested:2": "Q2_K",
    "affine:4g32": "Q4_1",
    "affine:2": "Q4_1",
    "grid:4g32z": "Q8_0",
    "grid:8g32s": "Q8_0",
}


def wide(spec: Any) -> tuple[Any, pvopt.QuantizedWeights]:
    """Return a Llama with rows of 256, of one layer, and scales that float16 has."""
    return quantized(wide_llama(), spec)


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
    codes = None
    if block.nested is not None:
        size = (2, rows, number * block.size // block.nested[0])
        drawn = torch.randint(1 << block.nested[1], size, generator=draws).to(torch.uint8)
        codes = (drawn[0], drawn[1])
    return Blocks(levels[places], halves[0], halves[1] if block.offsets else None, codes)


def decoded_by_hand(block: BlockType, packed: np.ndarray) -> np.ndarray:
    """Decode the two types that the package gguf does not: bit by bit."""
    bits = {"Q1_0": 1, "Q2_0": 2}[block.name]
    rows = []
    for row in packed:
        for stored in row.reshape(-1, block.bytes):
            scale = float(stored[:2].view(np.float16)[0])
            word = int.from_bytes(stored[2:].tobytes(), "little")
            codes = [word >> (bits * i) & ((1 << bits) - 1) for i in range(block.size)]
            rows += [scale * (2 * c - 1 if bits == 1 else c - 1) for c in codes]
    return np.array(rows, np.float32).reshape(len(packed), -1)


def decoded_by_peer(block: BlockType, packed: np.ndarray) -> np.ndarray:
    if block.name in ("Q1_0", "Q2_0"):
        return decoded_by_hand(block, packed)
    peer = pytest.importorskip("gguf", reason="the package gguf is missing")
    with np.errstate(invalid="ignore"):
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
    if blocks.codes is not None and back.codes is not None:
        assert all(map(torch.equal, back.codes, blocks.codes))
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
    theirs = decoded_by_peer(block, packed)
    codes = packed[:, :64] if block.name == "TQ2_0" else packed[:, :0]
    if not np.isfinite(theirs).all() or ((codes & (codes >> 1) & 0x55) != 0).any():
        with pytest.raises(ValueError, match=r"not finite|have no code 3"):
            representation_of(block, block.unpack(torch.from_numpy(packed)))
        return
    rep = representation_of(block, block.unpack(torch.from_numpy(packed)))
    assert np.array_equal(rep.decode().numpy(), theirs)


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


@pytest.mark.parametrize("text", ["grid:2g64s", "grid:3s", "affine:4g32"])
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


def test_embeddings_are_tuned_in_their_own_format_too(tmp_path):
    """Published files have blocks there, which layers share where embeddings are tied."""
    model = load_model("tiny-llama").model
    spec = {"*embed_tokens": "grid:8g32s", "*_proj": "affine:4g32"}
    schemes = {name: pvopt.parse_scheme(text) for name, text in spec.items()}
    options = pvopt.FitOptions(iterations=1)
    weights = pvopt.quantize_(model, schemes, exclude=(), options=options)
    weights = in_dtype(in_dtype(weights, torch.float16), torch.float32)
    back = load(written(tmp_path / "x", model, weights))
    assert "model.embed_tokens.weight" in back.weights
    assert torch.equal(logits(back.model), logits(model))
    base = torch.optim.SGD(back.model.parameters(), lr=0.1)
    optimizer = pvopt.PVOptimizer(base, back.weights)
    tuned: Any = back.model
    tuned(IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert not torch.equal(logits(tuned), logits(model))
    reps = pvopt.QuantizedWeights(tuned, optimizer.representations)
    rounded = in_dtype(in_dtype(reps, torch.float16), torch.float32)
    again = load(written(tmp_path / "y", tuned, rounded))
    assert torch.equal(logits(again.model), logits(tuned))


def test_a_model_is_filled_in_place(tmp_path):
    model, weights = small("grid:4g32s")
    file = written(tmp_path / "x", model, weights)
    other = load_model("tiny-llama", seed=1).model
    assert load(file, other).model is other
    assert torch.equal(logits(other), logits(model))


def test_llamas_rotate_slowly_where_they_did(tmp_path):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from pvopt.formats.gguf.positions import frequency_factors

    model, weights = wide("grid:4g32s")
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
    usual = 5e4 ** -(torch.arange(0, 64, 2) / 64)
    factors = frequency_factors(LLAMA3, 64)
    torch.testing.assert_close(usual / factors, theirs)
    assert len(set(factors.tolist())) > 3  # fast, slow and between
    back = load(written(tmp_path / "x", model, weights)).model
    assert back.config.rope_parameters == LLAMA3
    assert torch.equal(logits(back), logits(model))


def test_transformers_computes_the_same_logits(tmp_path):
    """Another reader of names, settings and the order of rows; it knows no type 42."""
    pytest.importorskip("gguf", reason="the package gguf is missing")
    from transformers import AutoModelForCausalLM, GgufConfig

    model, weights = small("grid:4g32s")
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
        *(
            (wide, text)
            for text in ("binary:g128", "ternary:g256", "grid:4g32s", "grid:2g64s", "nested:2")
        ),
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
    text = "Hé 12"
    assert torch.equal(peer.log_probs(text, 259), peer.log_probs(tokenizer().encode(text), 259))


def test_llama_cpp_computes_the_same_to_the_last_digits_where_it_rounds_no_inputs(tmp_path):
    model, weights = wide({"*down_proj": pvopt.parse_scheme("grid:8g32s")})
    with torch.no_grad():  # leaves the one layer of blocks out
        model.model.layers[0].post_attention_layernorm.weight.zero_()
    peer = LlamaCpp(written(tmp_path / "x", model, weights, tokenizer=tokenizer()))
    ours = logits(model)[0, -1].log_softmax(-1)
    torch.testing.assert_close(peer.log_probs(IDS[0].tolist(), 259), ours, rtol=0, atol=2e-4)


def pieces(prefix: bool, first: bool) -> Any:
    """Return a tokenizer of pieces and of bytes for the rest, as Llama 2 has one."""
    joined = ["▁t", "he", "▁the", "er", "in", "ther", "▁▁", "th"]
    single = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *joined, *single]
    scores = [0.0] * 259 + [-float(n) for n in range(len(joined) + len(single))]
    settings = {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_bos_token": first,
        "add_space_prefix": prefix,
    }
    return tokenizer_of({f"tokenizer.ggml.{key}": value for key, value in settings.items()})


@pytest.mark.parametrize(("prefix", "first"), [(True, True), (False, False)])
def test_llama_cpp_cuts_texts_into_the_same_pieces(tmp_path, prefix, first):
    from transformers import LlamaConfig, LlamaForCausalLM

    cut = pieces(prefix, first)
    vocabulary = len(cut) + 3  # rows of embeddings that stand for nothing
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, weights = quantized(LlamaForCausalLM(config).eval(), "grid:8g32s")
    file = written(tmp_path / "x", model, weights, tokenizer=cut)
    peer = LlamaCpp(file)
    for text in ("the there inner", "  two  spaces", "é the 12\n", "therein"):
        ids = cut.encode(text)
        assert (ids[0] == 1) == first
        assert cut.decode(ids, skip_special_tokens=True) == text
        assert torch.equal(peer.log_probs(text, vocabulary), peer.log_probs(ids, vocabulary)), text
        assert load_tokenizer(file).encode(text) == ids


@pytest.mark.parametrize(("text", "name"), [("ternary:g256", "TQ2_0"), ("grid:2g64s", "Q4_0")])
def test_types_of_blocks_are_chosen(tmp_path, text, name):
    from pvopt.formats.gguf.container import read_container

    model, weights = wide(text)
    folder = save(tmp_path / "x", model, weights, format="gguf:TQ2_0,Q4_0", tokenizer=tokenizer())
    file = folder / "model.gguf"
    tensor = read_container(file).tensors["blk.0.ffn_up.weight"]
    assert tensor.number == BLOCKS[name].number
    assert torch.equal(logits(load(file).model), logits(model))
    ours = logits(model)[0, -1].log_softmax(-1)
    theirs = LlamaCpp(file).log_probs(IDS[0].tolist(), 259)
    assert float((theirs - ours).square().mean().sqrt()) < 0.03 * float(ours.std())
    for format in ("gguf:Q5_0", "gguf:", "dense:x"):
        with pytest.raises(ValueError, match=r"blocks must be some of|takes no settings"):
            save(tmp_path / "y", model, weights, format=format)


# What cannot be written.


def with_spec(text: str, make: Callable[[Any], Any] = small) -> Any:
    return lambda: make(text)


def unrounded() -> Any:
    return tiny("grid:4g32s")


def in_bfloat16() -> Any:
    return tiny("affine:4g32", torch.bfloat16)


def changed_config(**settings: Any) -> Any:
    def make() -> Any:
        model, weights = small("grid:4g32s")
        for name, value in settings.items():
            setattr(model.config, name, value)
        return model, weights

    return make


def plain() -> Any:
    model = torch.nn.Linear(32, 8)
    return model, pvopt.quantize_(model, pvopt.parse_scheme("grid:4s"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_spec("grid:4g32"), r"q_proj.weight': its zero points are no integers: take offsets"),
        (with_spec("2:4"), "only integers times a scale can be stored"),
        (with_spec("grid:8z"), "no block type of Q1_0, .*Q8_0 has its levels"),
        (with_spec("affine:5g32"), "no block type of .* has its levels"),
        (with_spec("nested:2g16x4"), r"groups of 64 inputs, .* \(Q2_K of 256\)"),
        (with_spec("grid:4g16s"), r"its groups of 16 inputs, of \d+, are no multiples of the bl"),
        (with_spec("had+grid:4s"), "its space Rotation"),
        (unrounded, r"'model.*: its scales are no float16 numbers.*export --dtype float16"),
        (in_bfloat16, "would be read back as another weight; files are decoded in float32"),
        (changed_config(model_type="gpt2"), "only models of the kinds llama, mistral .* not gpt2"),
        (changed_config(hidden_act="gelu"), "hidden_act must be 'silu', got 'gelu'"),
        (changed_config(rope_parameters={"rope_type": "yarn"}), "not by 'yarn'"),
        (changed_config(rope_parameters=LLAMA3 | {"low_freq_factor": 2}), "must be rotated as in"),
        (changed_config(sliding_window=8), "must see all before it, not a window of 8"),
        (changed_config(tie_word_embeddings=False), "its configuration says otherwise"),
        (changed_config(vocab_size=200), "has token 258, and the model embeddings of 200"),
        (plain, "only models of transformers can, got Linear"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, make, reason):
    model, weights = make()
    with pytest.raises(CheckpointError, match=reason):
        written(tmp_path / "x", model, weights, tokenizer=tokenizer())
    assert not (tmp_path / "x").exists()


# Files of others.


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    spec = {"*up_proj": "affine:4g32", "*": "grid:2g64s"}
    model, weights = small({name: pvopt.parse_scheme(text) for name, text in spec.items()})
    return written(tmp_path_factory.mktemp("exported") / "x", model, weights, tokenizer=tokenizer())


def put(old: bytes, new: bytes, place: int = 0) -> Callable[[bytes], bytes]:
    """Return an edit of what follows a name or a number."""

    def edit(content: bytes) -> bytes:
        at = content.index(old) + len(old) + place
        return content[:at] + new + content[at + len(new) :]

    return edit


def renamed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old, new)


DAMAGES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda content: b"", "is truncated"),
    (lambda content: content[:1000], "is truncated"),
    (lambda content: content[:-5000], r"takes \d+ bytes by its type and shape, and the file has"),
    (put(b"", b"GGML"), "is no GGUF file"),
    (put(b"GGUF", b"\x07"), r"has version 7, known are \(2, 3\)"),
    (put(b"GGUF", b"\xff" * 8, 4), "has 0 dimensions"),
    (put(b"llama.block_count", b"\x63"), "'llama.block_count' has the unknown type 99"),
    (put(b"llama.block_count", b"\x03", 4), "holds no weights for model.layers.2"),
    (put(b"llama.embedding_length", b"\x80", 4), r"has shape \[259, 64\], the model's"),
    (put(b"llama.attention.head_count", b"\x03", 4), "must be a multiple of head_count_kv"),
    (put(b"tokenizer.ggml.tokens", b"\xff" * 8, 8), "is truncated"),
    (put(b"tokenizer.ggml.token_type", b"\xff" * 6, 8), "is truncated"),
    (put(b"tokenizer.ggml.token_type", b"\x09", 4), "is a list of the unknown type 9"),
    (put(b"blk.0.ffn_up.weight", b"\x00"), "'blk.0.ffn_up.weight' has 0 dimensions"),
    (put(b"blk.0.ffn_up.weight", b"\x00", 4), r"'blk.0.ffn_up.weight' has the shape \[128, 0\]"),
    (put(b"blk.0.ffn_up.weight", b"\x21", 4), r"has rows of 33, no multiple of 32"),
    (put(b"blk.0.ffn_up.weight", b"\x63", 20), "has the type 99, which is not read"),
    (put(b"blk.0.ffn_up.weight", b"\x08", 20), "takes 8704 bytes by its type and shape"),
    (put(b"blk.0.ffn_up.weight", b"\xff" * 7, 24), "bytes by its type and shape, and the file"),
    (renamed(b"blk.0.ffn_up", b"blk.0.ssm_up"), "'blk.0.ssm_up.weight' is no tensor of a Llama"),
    (renamed(b"blk.0.ffn_up", b"blk.1.ffn_up"), "has 'blk.1.ffn_up.weight' twice"),
    (renamed(b"token_embd", b"token_type"), "it has no tensor 'token_embd.weight'"),
    (renamed(b"llama.context_length", b"llama.context_lenght"), "context_length must be a pos"),
    (
        renamed(b"\x10" + b"\0" * 7 + b"llama.vocab_size", b"\x0b" + b"\0" * 7 + b"split.count"),
        "parts",
    ),
    (put(b"general.architecture", b"gemma", 12), "architecture must be 'llama', got 'gemma'"),
]


@pytest.mark.parametrize(("edit", "reason"), DAMAGES)
def test_damaged_and_foreign_files_are_refused(exported, tmp_path, edit, reason):
    file = tmp_path / "x.gguf"
    file.write_bytes(edit(exported.read_bytes()))
    with pytest.raises(CheckpointError, match=reason) as caught:
        load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (put(b"tokenizer.ggml.model", b"bert", 12), "tokenizer.ggml.model must be 'gpt2' or"),
        (put(b"tokenizer.ggml.pre", b"tekke", 12), "tokenizer.ggml.pre must be one of gpt-2"),
        (renamed(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"), "do not fit together"),
        (renamed(b"tokenizer.ggml.model", b"tokenizer.ggml.medal"), "has no tokenizer"),
    ],
)
def test_tokenizers_of_other_kinds_are_refused(exported, tmp_path, edit, reason):
    file = tmp_path / "x.gguf"
    file.write_bytes(edit(exported.read_bytes()))
    assert load(file).weights
    with pytest.raises(CheckpointError, match=reason):
        load_tokenizer(file)


def test_only_regular_files_are_read(tmp_path, exported):
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match="found a file"):
        load(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match=r"x.gguf: is a FIFO"):
        load(tmp_path)
    (tmp_path / "y.gguf").symlink_to(exported)
    assert load(tmp_path / "y.gguf").weights  # whoever names a link wants it followed
    with pytest.raises(CheckpointError, match="holds 2 GGUF files"):
        load(tmp_path)


@settings(
    max_examples=MUTATIONS // 6,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(edit=edits(), header=st.booleans())
def test_any_mutation_is_refused_or_a_model_of_the_same_shape(exported, tmp_path, edit, header):
    """Nothing says what was written: other numbers of the same shape are another model."""
    content = exported.read_bytes()
    end = content.index(b"blk.1.ffn_down.weight") + 100 if header else len(content)
    file = tmp_path / "x.gguf"
    file.write_bytes(edit(content[:end]) + content[end:])
    for read in (load, load_tokenizer):
        message = str(file)
        try:
            with bounded():
                found: Any = read(file)
        except CheckpointError as error:
            message = str(error)
        else:
            if read is load:
                assert logits(found.model).shape == (1, IDS.shape[1], 259)
        assert str(file) in message


def test_files_of_the_package_are_read(tmp_path):
    """All types of settings, another alignment, and lists that are not the whole file."""
    peer = pytest.importorskip("gguf", reason="the package gguf is missing")
    from pvopt.formats.gguf.container import read_container

    written = {
        "uint8": 200,
        "int8": -3,
        "uint16": 60000,
        "int16": -300,
        "uint32": 1 << 31,
        "int32": -(1 << 31),
        "uint64": 1 << 63,
        "int64": -(1 << 62),
        "float32": 0.5,
        "float64": 0.1,
        "bool": True,
        "string": "é",
        "array": [1.5, 2.0],
    }
    writer = peer.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(64)
    for kind, value in written.items():
        getattr(writer, f"add_{kind}")(kind, value)
    tensors = {name: np.arange(n, dtype=np.float32) for name, n in (("b", 3), ("a", 40))}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_container(tmp_path / "x.gguf")
    assert {name: found.settings[name] for name in written} == written
    for name, tensor in tensors.items():
        assert np.array_equal(found.bytes_of(name, tensor.nbytes).view(np.float32), tensor)
    (tmp_path / "y.gguf").write_bytes(found.without_tensors())
    bare = read_container(tmp_path / "y.gguf")
    assert bare.settings == found.settings
    assert not bare.tensors
