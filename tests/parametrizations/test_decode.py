"""Decoding against loops in NumPy, and its gradients against finite differences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt import (
    Binary,
    Incoherent,
    QuantizedNonzeros,
    Representation,
    SharedValues,
    Sparse,
    SparseNM,
    Ternary,
    UniformGrid,
)

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=10, deadline=None, derandomize=True)


def oracle(rep: Representation) -> np.ndarray:
    """Decode entry by entry, straight from the formulas."""
    p = rep.parametrization
    if isinstance(p, Incoherent):
        inner = oracle(Representation(p.inner, rep.codes, rep.values, rep.shape))
        return p.unrotate(torch.from_numpy(inner)).numpy()
    values = {name: value.double().numpy() for name, value in rep.values.items()}
    codes = rep.codes.numpy().astype(np.int64)
    rows = rep.shape[0] if len(rep.shape) > 1 else 1
    columns = int(np.prod(rep.shape)) // rows
    out = np.empty((rows, columns))
    if isinstance(p, Sparse | SparseNM):
        return sparse_oracle(p, codes, iter(values["values"].flatten()), rows, columns).reshape(
            rep.shape
        )
    if isinstance(p, QuantizedNonzeros):
        shape = p.nonzero_shape(rep.shape)
        cut = codes.shape[2] - np.prod(shape) // (codes.shape[0] * codes.shape[1])
        inner = torch.from_numpy(codes[..., cut:].reshape(*shape, 1))
        nonzeros = oracle(Representation(p.inner, inner, rep.values, shape))
        own = codes[..., :cut]
        return sparse_oracle(p.support, own, iter(nonzeros.flatten()), rows, columns).reshape(
            rep.shape
        )
    for i in range(rows):
        for j in range(columns):
            if isinstance(p, SharedValues):
                out[i, j] = values["values"][codes[i, j, 0]]
            elif isinstance(p, UniformGrid):
                s = j // (p.group_size or columns)
                zero = 2 ** (p.bits - 1) if p.symmetric else values["zeros"][i, s]
                out[i, j] = values["scales"][i, s] * (codes[i, j, 0] - zero)
            elif isinstance(p, Binary | Ternary):
                levels = (-1, 1) if isinstance(p, Binary) else (-1, 0, 1)
                s = j // (p.group_size or columns)
                out[i, j] = values["scales"][i, s] * levels[codes[i, j, 0]]
            else:
                block_row, block_column = i // p.out_group, j // p.in_group
                inside = (i % p.out_group) * p.in_group + j % p.in_group
                s = j // (p.scale_group or columns)
                total = sum(
                    values["codebooks"][m, codes[block_row, block_column, m], inside]
                    for m in range(p.codes_per_group)
                )
                out[i, j] = values["scales"][block_row, s] * total
    return out.reshape(rep.shape)


def sparse_oracle(
    p: Sparse | SparseNM, codes: np.ndarray, values: Iterator[float], rows: int, columns: int
) -> np.ndarray:
    """The nonzeros come in the order of the entries."""
    if isinstance(p, SparseNM):
        supports = list(itertools.combinations(range(p.group_size), p.nonzeros))
        kept = [
            (i, j * p.group_size + place)
            for i, j in itertools.product(range(rows), range(columns // p.group_size))
            for place in supports[codes[i, j, 0]]
        ]
    else:
        mask = codes.reshape(rows, columns)
        kept = [(i, j) for i, j in itertools.product(range(rows), range(columns)) if mask[i, j]]
    out = np.zeros((rows, columns))
    for place in kept:
        out[place] = next(values)
    assert next(values, None) is None
    return out


@some
@given(seed=SEEDS)
def test_decode_equals_the_formula(case, draw_rep, seed):
    rep = draw_rep(case, seed)
    np.testing.assert_allclose(rep.decode().numpy(), oracle(rep), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_keeps_the_dtype_of_the_values(case, draw_rep, dtype):
    rep = draw_rep(case, 1, dtype=dtype)
    decoded = rep.decode()
    assert decoded.dtype == rep.dtype == dtype
    assert decoded.is_contiguous()
    np.testing.assert_allclose(decoded.double().numpy(), oracle(rep), rtol=0.1, atol=0.1)


@some
@given(seed=SEEDS)
def test_decoding_some_groups_equals_taking_them_from_the_whole(case, draw_rep, seed):
    rep = draw_rep(case, seed)
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(rep.layout.num_groups, (5,), generator=generator)
    p = rep.parametrization
    expected = p.split(rep.decode())[groups]
    torch.testing.assert_close(p.decode_groups(rep, groups), expected)
    torch.testing.assert_close(p.decode_groups(rep, groups, rep.flat_codes[groups]), expected)
    other = rep.flat_codes.flip(0)
    swapped = Representation(p, other.view_as(rep.codes).contiguous(), rep.values, rep.shape)
    torch.testing.assert_close(p.decode_groups(rep, None, other), p.decode_groups(swapped))


def test_decode_is_differentiable_in_the_values(case, draw_rep):
    rep = draw_rep(case, 2)
    names = list(rep.values)

    def decode(*values: torch.Tensor) -> torch.Tensor:
        named = dict(zip(names, values, strict=True))
        return Representation(rep.parametrization, rep.codes, named, rep.shape).decode()

    leaves = [rep.values[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(decode, leaves)


@some
@given(seed=SEEDS)
def test_value_gradients_equal_finite_differences(case, draw_rep, seed):
    """decode is multilinear: central differences of <gradient, decode(v)> are exact."""
    rep = draw_rep(case, seed)
    gradient = torch.randn(rep.shape, dtype=torch.float64)
    found = rep.parametrization.value_gradients(rep, gradient)
    assert list(found) == list(rep.values)
    step = 1e-3
    for name, value in rep.values.items():
        assert found[name].shape == value.shape
        assert found[name].dtype == value.dtype
        expected = torch.empty_like(value)
        for i in range(value.numel()):
            start = float(value.view(-1)[i])
            ends = []
            for moved in (start + step, start - step):
                value.view(-1)[i] = moved
                ends.append(float((gradient * torch.from_numpy(oracle(rep))).sum()))
            value.view(-1)[i] = start
            expected.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(found[name], expected, rtol=1e-8, atol=1e-8)


def test_value_gradients_change_nothing_and_take_other_dtypes(case, draw_rep):
    rep = draw_rep(case, 3, dtype=torch.float32)
    before = rep.clone()
    gradient = torch.randn(rep.shape, dtype=torch.bfloat16)
    copy = gradient.clone()
    found = rep.parametrization.value_gradients(rep, gradient)
    assert torch.equal(gradient, copy)
    for (name, left), (_, right) in zip(rep.tensors(), before.tensors(), strict=True):
        assert torch.equal(left, right), name
    exact = rep.to(dtype=torch.float64)
    wanted = exact.parametrization.value_gradients(exact, gradient.double())
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert not value.requires_grad
        torch.testing.assert_close(value.double(), wanted[name], rtol=1e-4, atol=1e-4)


def test_value_gradients_of_a_non_contiguous_gradient(case, draw_rep):
    rep = draw_rep(case, 4)
    gradient = torch.randn(*rep.shape, 2, dtype=torch.float64)[..., 0]
    found = rep.parametrization.value_gradients(rep, gradient)
    wanted = rep.parametrization.value_gradients(rep, gradient.contiguous())
    for name in found:
        assert torch.equal(found[name], wanted[name])
