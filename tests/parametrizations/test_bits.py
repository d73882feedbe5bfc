"""True storage per weight."""

from __future__ import annotations

import math

import pytest
import torch

from pvopt import (
    AdditiveCodebooks,
    AffineGrid,
    Binary,
    Chain,
    NestedGrid,
    Padding,
    Permutation,
    QuantizedNonzeros,
    Rotation,
    Scaling,
    Scheme,
    SharedValues,
    Sparse,
    SparseNM,
    Ternary,
    UniformGrid,
    VectorCodebook,
)


@pytest.mark.parametrize(
    ("books", "bits", "group", "shape"),
    [
        (2, 8, 8, (4096, 11008)),
        (1, 16, 8, (4096, 4096)),
        (1, 16, 16, (512, 64)),
        (4, 3, 2, (6, 10)),
    ],
)
def test_additive_codebooks_take_the_stated_bits(books, bits, group, shape):
    """M B / N + 16 M 2^B N / (rows cols) + 16 / cols."""
    rows, columns = shape
    expected = books * bits / group + 16 * books * 2**bits * group / (rows * columns) + 16 / columns
    found = AdditiveCodebooks(num_codebooks=books, bits=bits, in_group=group).bits_per_weight(shape)
    assert found == pytest.approx(expected, rel=1e-12)
    if books == 1:
        vector = VectorCodebook(bits=bits, group_size=group).bits_per_weight(shape)
        assert vector == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("parametrization", "shape", "bits"),
    [
        # 24 codes of 3 bits, 5 values of 16
        (SharedValues(num_values=5), (4, 6), (24 * 3 + 5 * 16) / 24),
        (SharedValues(num_values=4), (4, 6), (24 * 2 + 4 * 16) / 24),
        # 24 codes of 2 bits, 8 scales and 8 zeros of 16
        (UniformGrid(bits=2, group_size=3), (4, 6), (24 * 2 + 16 * 16) / 24),
        (UniformGrid(bits=2, group_size=3, symmetric=True), (4, 6), (24 * 2 + 8 * 16) / 24),
        # 24 codes of 3 bits, 8 scales of 16, 8 zero points of 3
        (
            UniformGrid(bits=3, group_size=3, integer_zeros=True),
            (4, 6),
            (24 * 3 + 8 * 16 + 8 * 3) / 24,
        ),
        (UniformGrid(bits=4), (4, 6), (24 * 4 + 8 * 16) / 24),
        (AffineGrid(bits=4, group_size=6), (4, 6), (24 * 4 + 8 * 16) / 24),
        # 32 codes of 2 bits, 16 pairs of 3 bits, 8 pairs of 16
        (
            NestedGrid(bits=2, group_size=2, groups=2, scale_bits=3),
            (4, 8),
            (32 * 2 + 16 * 2 * 3 + 8 * 2 * 16) / 32,
        ),
        # 24 bits, 4 scales; 24 trits in 5 bytes, 8 scales
        (Binary(), (4, 6), (24 + 4 * 16) / 24),
        (Ternary(group_size=3), (4, 6), (5 * 8 + 8 * 16) / 24),
        # masks of a byte for each row and 4 x 2 values; a mask of 3 bytes and 6 values
        (Sparse(density=0.3), (4, 6), (4 * 8 + 8 * 16) / 24),
        (Sparse(density=0.25, per="tensor"), (4, 6), (24 + 6 * 16) / 24),
        # 8 groups of 2 bits and a value; 6 of 3 bits and 2 values
        (SparseNM(nonzeros=1, group_size=3), (4, 6), (8 * 2 + 8 * 16) / 24),
        (SparseNM(nonzeros=2, group_size=4), (3, 8), (6 * 3 + 12 * 16) / 24),
        # 6 supports of 3 bits, 12 codes of 2 bits, 3 scales and 3 zeros
        (
            QuantizedNonzeros(
                support=SparseNM(nonzeros=2, group_size=4), inner=UniformGrid(bits=2)
            ),
            (3, 8),
            (6 * 3 + 12 * 2 + 6 * 16) / 24,
        ),
        # masks of a byte for each row, 8 signs, 4 scales
        (
            QuantizedNonzeros(support=Sparse(density=0.3), inner=Binary()),
            (4, 6),
            (4 * 8 + 8 + 4 * 16) / 24,
        ),
        # 8 groups of one 2-bit code, 4 entries of 3 numbers, 4 scales
        (VectorCodebook(bits=2, group_size=3), (4, 6), (8 * 2 + 16 * (12 + 4)) / 24),
        # 8 groups of 2 x 2 bits, 2 x 4 entries of 4 numbers, 2 block rows x 2 scales
        (
            AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2, out_group=2, scale_group=4),
            (4, 8),
            (8 * 4 + 16 * (32 + 4)) / 32,
        ),
        # a convolution is a matrix [4, 6]: 4 groups of 2 x 2 bits, 8 entries of 6, 2 scales
        (
            AdditiveCodebooks(num_codebooks=2, bits=2, in_group=3, out_group=2),
            (4, 2, 3, 1),
            (4 * 4 + 16 * (48 + 2)) / 24,
        ),
    ],
    ids=str,
)
def test_bits_counted_by_hand(parametrization, shape, bits):
    assert parametrization.bits_per_weight(shape) == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize(
    ("space", "bits"),
    [
        (Rotation(), 0),
        (Permutation(), 6 * 3),  # six columns, numbers of three bits
        (Scaling(inputs=True, outputs=True), (6 + 4) * 16),
        (Chain((Permutation(), Scaling(outputs=True))), 6 * 3 + 4 * 16),
    ],
    ids=str,
)
def test_what_a_space_owns_counts(space, bits):
    grid = UniformGrid(bits=2, group_size=3)
    expected = grid.bits_per_weight((4, 6)) + bits / 24
    assert Scheme(grid, space).bits_per_weight((4, 6)) == pytest.approx(expected, rel=1e-12)


def test_padding_is_paid_for():
    found = Scheme(UniformGrid(bits=2), Padding(rows=4, columns=8)).bits_per_weight((3, 5))
    assert found == pytest.approx((32 * 2 + 8 * 16) / 15, rel=1e-12)


def test_bits_equal_the_size_of_the_tensors(case, draw_rep):
    rep = draw_rep(case, 1)
    scheme = rep.scheme
    packed = sum(stream.pack(rep.codes[n]).numel() for n, stream in rep.streams.items())
    codes = sum(stream.stored_bits for stream in rep.streams.values())
    assert 0 <= 8 * packed - codes < 8 * len(rep.streams)  # each last byte is filled up
    values = sum(value.numel() for value in rep.values.values())
    for value_bits in (8, 16, 32):
        expected = (codes + value_bits * values) / math.prod(rep.shape)
        found = scheme.bits_per_weight(rep.shape, value_bits=value_bits)
        assert found == pytest.approx(expected, rel=1e-12)
    assert rep.bits_per_weight() == pytest.approx(scheme.bits_per_weight(rep.shape, value_bits=64))


def test_streams_read_back_what_they_packed(case, draw_rep):
    rep = draw_rep(case, 2)
    for name, stream in rep.streams.items():
        assert rep.codes[name].dtype == stream.dtype
        assert torch.equal(stream.unpack(stream.pack(rep.codes[name])), rep.codes[name])
