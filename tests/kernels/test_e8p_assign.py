"""The search by structure against the table of all 2^16 points."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pvopt_kernels import e8p_assign, e8p_decode

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def table() -> Tensor:
    codes = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    return e8p_decode(codes, DOUBLE)


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def errors_of_all(table: Tensor, target: Tensor, metric: Tensor | None) -> Tensor:
    """Squared errors of every point, ``[n, 2**16]``; no expansion of the square."""
    rows = []
    for i, t in enumerate(target.double()):
        squares = (table - t).square_()
        rows.append((squares if metric is None else squares * metric[i].double()).sum(1))
    return torch.stack(rows)


def errors_of(target: Tensor, codes: Tensor, metric: Tensor | None) -> Tensor:
    squares = (e8p_decode(codes, DOUBLE) - target.double()[:, None]).square()
    return (squares if metric is None else squares * metric.double()[:, None]).sum(-1)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.sampled_from([1, 1, 2, 3, 7, 40]),
    size=st.sampled_from([0.1, 1.0, 4.0]),
    grid=st.sampled_from([None, 0.25, 1.0]),
    with_metric=st.booleans(),
)
def test_e8p_assign_equals_the_full_table(table, seed, k, size, grid, with_metric):
    """Same distances as a scan; targets on a grid have many ties, among signs and among shifts."""
    generator = torch.Generator().manual_seed(seed)
    target = size * torch.randn(6, 8, generator=generator, dtype=DOUBLE)
    if grid is not None:
        target = (target / grid).round() * grid
    metric = None
    if with_metric:
        metric = torch.rand(6, 8, generator=generator, dtype=DOUBLE)
        metric[0, ::2] = 0.0
        if grid is not None:
            metric = (2 * metric).round()
    found = e8p_assign(target, k, metric=metric)
    assert found.shape == (6, k, 2)
    assert found.dtype == torch.int64
    wanted = errors_of_all(table, target, metric).topk(k, largest=False).values
    torch.testing.assert_close(errors_of(target, found, metric), wanted, rtol=1e-12, atol=1e-12)
    for row in found.tolist():
        assert len({tuple(code) for code in row}) == k


def test_every_point_is_its_own_nearest(table):
    found = e8p_assign(table)[:, 0]
    assert torch.equal(found[:, 0] * 256 + found[:, 1], torch.arange(1 << 16))


def test_all_points_in_order(table):
    target = torch.randn(1, 8, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    found = e8p_assign(target, 1 << 17)
    assert found.shape == (1, 1 << 16, 2)
    codes = found[0, :, 0] * 256 + found[0, :, 1]
    assert torch.equal(codes.sort().values, torch.arange(1 << 16))
    torch.testing.assert_close(
        errors_of(target, found, None)[0], errors_of_all(table, target, None)[0].sort().values
    )


@pytest.mark.parametrize(("k", "with_metric"), [(1, True), (3, False)])
def test_e8p_assign_in_lower_precision(
    kind, table, precision, ragged, k, with_metric, generator, guard, device
):
    target = torch.randn(ragged, 8, generator=generator(1)).to(precision.dtype)
    metric = None
    if with_metric:
        metric = torch.rand(ragged, 8, generator=generator(2)).to(precision.dtype)
    moved = None if metric is None else guard(metric.to(device))
    found = e8p_assign(guard(target.to(device)), k, metric=moved).cpu()
    assert found.shape == (ragged, k, 2)
    found, target = found[-8:], target[-8:]  # a scan takes long; the last rows are the ragged ones
    metric = None if metric is None else metric[-8:]
    if ragged == 0:
        return
    wanted = errors_of_all(table, target, metric).topk(k, largest=False).values
    # inputs are exact in the dtype and errors are computed in at least float32
    torch.testing.assert_close(errors_of(target, found, metric), wanted, rtol=1e-5, atol=1e-5)


def test_rows_of_many_chunks_are_searched_alike():
    target = torch.randn(5000, 8, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    for k in (1, 2):
        whole = e8p_assign(target, k)
        parts = torch.cat([e8p_assign(part, k) for part in target.split(700)])
        torch.testing.assert_close(errors_of(target, whole, None), errors_of(target, parts, None))


def test_any_memory_layout(kind, device):
    target = torch.randn(8, 33, generator=torch.Generator().manual_seed(4)).to(device)
    assert torch.equal(e8p_assign(target.T, 2), e8p_assign(target.T.contiguous(), 2))


def test_bad_arguments_are_refused():
    target = torch.zeros(3, 8)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        e8p_assign(target, 0)
    with pytest.raises(ValueError, match=r"target must have shape \[n, 8\], got \[3, 4\]"):
        e8p_assign(target[:, :4])
    with pytest.raises(ValueError, match=r"metric must have shape \[3, 8\], got \[2, 8\]"):
        e8p_assign(target, metric=target[:2])
    with pytest.raises(TypeError, match="target must be one of"):
        e8p_assign(target.int())


def test_it_passes_the_checks_of_custom_operators(monkeypatch):
    monkeypatch.undo()  # the checks have their own way with memory
    target = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))
    for metric in (None, target.square()):
        torch.library.opcheck(
            torch.ops.pvopt.e8p_assign.default, (target, 2, metric), test_utils=CHECKS
        )
