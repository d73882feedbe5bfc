"""Streams of codes: packed at their real width, and back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pvopt import CodeStream

SIZES = (0, 1, 2, 7, 8, 9, 63, 1001)


def draw(stream: CodeStream, seed: int = 0) -> torch.Tensor:
    codes = torch.randint(
        stream.num_codes, stream.shape, generator=torch.Generator().manual_seed(seed)
    ).to(stream.dtype)
    codes.view(-1)[-1:] = stream.num_codes - 1  # the highest bit of the last code must survive
    return codes


def as_bytes(stream: CodeStream, codes: torch.Tensor) -> bytes:
    """Pack with Python's integers: words are digits of base K, the stream is one number."""
    flat, per_word = codes.flatten().tolist(), stream.codes_per_word
    words = [
        sum(code * stream.num_codes**j for j, code in enumerate(flat[i : i + per_word]))
        for i in range(0, len(flat), per_word)
    ]
    number = sum(word << stream.word_bits * i for i, word in enumerate(words))
    return number.to_bytes(stream.stored_bytes, "little")


@pytest.mark.parametrize("bits", range(1, 25))
def test_every_width_and_odd_sizes_come_back_from_exactly_the_bytes_needed(bits):
    for size in SIZES:
        stream = CodeStream(shape=(size,), num_codes=1 << bits, moves=False)
        codes = draw(stream, bits)
        packed = stream.pack(codes)
        assert packed.dtype == torch.uint8
        assert packed.shape == (math.ceil(size * bits / 8),) == (stream.stored_bytes,)
        found = stream.unpack(packed)
        assert found.dtype == stream.dtype == (torch.uint8 if bits <= 8 else torch.int32)
        assert torch.equal(found, codes)


@given(st.data())
def test_the_stream_is_the_documented_one(data):
    num_codes = data.draw(st.one_of(st.integers(1, 300), st.integers(1, 1 << 24)))
    most = 24 if num_codes == 1 else max(1, int(24 / math.log2(num_codes)))
    per_word = data.draw(st.integers(1, most))
    if (num_codes**per_word - 1).bit_length() > 24:
        per_word = 1
    shape = data.draw(st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(1, 3)))
    stream = CodeStream(shape=shape, num_codes=num_codes, codes_per_word=per_word)
    codes = draw(stream, data.draw(st.integers(0, 99)))
    packed = stream.pack(codes)
    assert bytes(packed.tolist()) == as_bytes(stream, codes)
    assert stream.stored_bytes == math.ceil(stream.stored_bits / 8)
    found = stream.unpack(packed)
    assert found.shape == codes.shape
    assert torch.equal(found, codes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(("num_codes", "per_word"), [(32, 1), (3, 5)])
def test_codes_of_any_dtype_and_strides_are_packed(dtype, num_codes, per_word):
    stream = CodeStream(shape=(4, 3, 2), num_codes=num_codes, codes_per_word=per_word)
    codes = draw(stream)
    strided = codes.permute(2, 1, 0).contiguous().permute(2, 1, 0).to(dtype)
    assert torch.equal(stream.pack(strided), stream.pack(codes))
    assert torch.equal(stream.unpack(stream.pack(strided)), codes)


def test_five_ternary_codes_take_a_byte():
    stream = CodeStream(shape=(1, 12, 1), num_codes=3, codes_per_word=5)
    codes = draw(stream)
    assert stream.stored_bytes == 3
    digits = [*codes.flatten().tolist(), 0, 0, 0]
    words = [sum(c * 3**j for j, c in enumerate(digits[i : i + 5])) for i in (0, 5, 10)]
    assert stream.pack(codes).tolist() == words


def test_a_mask_takes_a_bit_for_each_entry():
    stream = CodeStream(shape=(5, 3, 7), num_codes=2)
    assert stream.stored_bytes == math.ceil(5 * 3 * 7 / 8)
    codes = draw(stream)
    assert torch.equal(stream.unpack(stream.pack(codes)), codes)


@pytest.mark.parametrize(
    ("num_codes", "per_word", "content", "fine"),
    [
        (3, 1, [0b11_00_01_10], False),
        (3, 1, [0b10_00_01_10], True),
        (3, 5, [243], False),
        (3, 5, [242], True),
        (300, 1, [300 & 255, 300 >> 8], False),
        (299, 1, [298 & 255, 298 >> 8], True),
    ],
)
def test_words_and_codes_beyond_the_last_one_are_refused(num_codes, per_word, content, fine):
    count = {(3, 1): 4, (3, 5): 5}.get((num_codes, per_word), 1)
    stream = CodeStream(shape=(1, 1, count), num_codes=num_codes, codes_per_word=per_word)
    packed = torch.tensor(content, dtype=torch.uint8)
    if fine:
        assert torch.equal(stream.pack(stream.unpack(packed)), packed)
    else:
        with pytest.raises(ValueError, match=f"packed holds codes beyond {num_codes - 1}"):
            stream.unpack(packed)
        stream.unpack(packed, check=False)


def test_wrong_inputs_are_refused():
    stream = CodeStream(shape=(1, 5, 1), num_codes=8)
    with pytest.raises(ValueError, match=r"codes of 'levels' must be in 0\.\.7, got 0\.\.8"):
        stream.check("levels", torch.tensor([[[0], [8]]]))
    with pytest.raises(ValueError, match=r"got -1\.\.2"):
        stream.check("levels", torch.tensor([[[-1], [2]]]))
    with pytest.raises(TypeError, match="integers"):
        stream.check("levels", torch.tensor([0.0]))
    with pytest.raises(ValueError, match=r"shape \[2\] for 5 codes of 8 kinds, got \[3\]"):
        stream.unpack(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(TypeError, match="uint8"):
        stream.unpack(torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"num_codes must be in 1\.\.16777216, got 16777217"):
        CodeStream(shape=(1,), num_codes=(1 << 24) + 1, moves=False)
    with pytest.raises(ValueError, match="words of at most 24 bits, got 16 codes of 3 kinds"):
        CodeStream(shape=(1,), num_codes=3, codes_per_word=16, moves=False)
    with pytest.raises(ValueError, match=r"moves must be \[rows, cols, n\]"):
        CodeStream(shape=(1,), num_codes=3)
