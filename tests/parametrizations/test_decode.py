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
    AffineGrid,
    Binary,
    NestedGrid,
    QuantizedNonzeros,
    Representation,
    SharedValues,
    Sparse,
    SparseNM,
    Ternary,
    UniformGrid,
)

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=4, deadline=None, derandomize=True)


def oracle(rep: Representation) -> np.ndarray:
    """Decode entry by entry, straight from the formulas."""
    p = rep.parametrization
    if not rep.space.trivial:
        own = {n: c for n, c in rep.codes.items() if not n.startswith("space.")}
        values = {n: v for n, v in rep.values.items() if not n.startswith("space.")}
        inner = oracle(Representation(p, own, values, rep.inner_shape))
        return rep.space.leave(torch.from_numpy(inner), rep.owned, rep.shape).numpy()
    values = {name: value.double().numpy() for name, value in rep.values.items()}
    codes = {name: codes.numpy().astype(np.int64) for name, codes in rep.codes.items()}
    rows = rep.shape[0] if len(rep.shape) > 1 else 1
    columns = int(np.prod(rep.shape)) // rows
    out = np.empty((rows, columns))
    if isinstance(p, Sparse | SparseNM):
        nonzeros = iter(values["values"].flatten())
        return sparse_oracle(p, codes["support"], nonzeros, rows, columns).reshape(rep.shape)
    if isinstance(p, QuantizedNonzeros):
        shape = p.nonzero_shape(rep.shape)
        inner = {name: rep.codes[name].reshape(*shape, 1) for name in p.inner.streams(shape)}
        nonzeros = iter(oracle(Representation(p.inner, inner, rep.values, shape)).flatten())
        own = codes["support"]
        return sparse_oracle(p.support, own, nonzeros, rows, columns).reshape(rep.shape)
    zeros = codes.pop("zeros", values.get("zeros"))
    steps, shifts = codes.pop("scales", None), codes.pop("offsets", None)
    (codes,) = codes.values()
    for i in range(rows):
        for j in range(columns):
            if isinstance(p, SharedValues):
                out[i, j] = values["values"][codes[i, j, 0]]
            elif isinstance(p, UniformGrid):
                s = j // (p.group_size or columns)
                zero = 2 ** (p.bits - 1) if p.symmetric else zeros[i, s]
                out[i, j] = values["scales"][i, s] * (codes[i, j, 0] - zero)
            elif isinstance(p, AffineGrid):
                s = j // (p.group_size or columns)
                out[i, j] = values["scales"][i, s] * codes[i, j, 0] + values["offsets"][i, s]
            elif isinstance(p, NestedGrid):
                g = j // p.group_size
                step = values["scales"][i, g // p.groups] * steps[i, g]
                shift = values["offsets"][i, g // p.groups] * shifts[i, g]
                out[i, j] = step * codes[i, j, 0] + shift
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
                    for m in range(p.num_codebooks)
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
        groups = 1 if p.per == "tensor" else rows
        bits = np.unpackbits(codes.reshape(groups, -1).astype(np.uint8), axis=1, bitorder="little")
        mask = bits[:, : rows * columns // groups].reshape(rows, columns)
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
    expected = rep.split(rep.decode())[groups]
    torch.testing.assert_close(p.decode_groups(rep, groups), expected)
    torch.testing.assert_close(p.decode_groups(rep, groups, rep.group_codes(groups)), expected)
    other, swapped = rep.group_codes().flip(0), rep.clone()
    swapped.write_codes_(None, other)
    torch.testing.assert_close(p.decode_groups(rep, None, other), p.decode_groups(swapped))


def test_decode_is_differentiable_in_the_values(case, draw_rep):
    rep = draw_rep(case, 2)
    names = list(rep.values)

    def decode(*values: torch.Tensor) -> torch.Tensor:
        named = dict(zip(names, values, strict=True))
        p, space = rep.parametrization, rep.space
        return Representation(p, rep.codes, named, rep.shape, space).decode()

    leaves = [rep.values[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(decode, leaves)


@some
@given(seed=SEEDS)
def test_pulled_gradients_equal_finite_differences(case, draw_rep, seed):
    """decode is multilinear: central differences of <gradient, decode(v)> are exact."""
    rep = draw_rep(case, seed)
    gradient = torch.randn(rep.shape, dtype=torch.float64)
    found = rep.pull([gradient])
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


def test_pulled_gradients_change_nothing_and_take_other_dtypes(case, draw_rep):
    rep = draw_rep(case, 3, dtype=torch.float32)
    before = rep.clone()
    gradient = torch.randn(rep.shape, dtype=torch.bfloat16)
    copy = gradient.clone()
    found = rep.pull([gradient])
    assert torch.equal(gradient, copy)
    for (name, left), (_, right) in zip(rep.tensors(), before.tensors(), strict=True):
        assert torch.equal(left, right), name
    exact = rep.to(dtype=torch.float64)
    wanted = exact.pull([gradient.double()])
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert not value.requires_grad
        torch.testing.assert_close(value.double(), wanted[name], rtol=1e-4, atol=1e-4)


def test_pulled_gradients_of_a_non_contiguous_gradient(case, draw_rep):
    rep = draw_rep(case, 4)
    gradient = torch.randn(*rep.shape, 2, dtype=torch.float64)[..., 0]
    found = rep.pull([gradient])
    wanted = rep.pull([gradient.contiguous()])
    for name in found:
        assert torch.equal(found[name], wanted[name])


def test_gradients_of_a_stack_are_those_of_its_members(case, draw_rep):
    members = [draw_rep(case, seed) for seed in (4, 5, 6)]
    gradients = [torch.randn(members[0].shape, dtype=torch.float64) for _ in members]
    wanted = [m.clone().pull([g]) for m, g in zip(members, gradients, strict=True)]
    found = Representation.stack(members).pull(gradients)
    for name, value in found.items():
        parts = torch.cat([w[name] for w in wanted])
        torch.testing.assert_close(value, parts)
