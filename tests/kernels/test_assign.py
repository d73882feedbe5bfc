"""assign against float64 enumeration, for every implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pvopt_kernels.ops import assign


def enumerate_errors(target, codebook, metric=None) -> np.ndarray:
    """Return every squared error, ``[n, K]`` in float64."""
    t, c = target.double().cpu().numpy(), codebook.double().cpu().numpy()
    squares = (t[:, None] - c[None]) ** 2
    if metric is not None:
        squares = squares * metric.double().cpu().numpy()[:, None]
    return squares.sum(-1)


def check(target, codebook, k: int, metric=None, precision=None) -> None:
    """Errors are those of the codes, in order, and no other entry is clearly nearer."""
    codes, errors = assign(target, codebook, k, metric=metric)
    n = len(target)
    assert codes.shape == errors.shape == (n, k)
    assert codes.dtype == torch.int64
    every = enumerate_errors(target, codebook, metric)
    found = np.take_along_axis(every, codes.cpu().numpy(), axis=1)
    np.testing.assert_allclose(errors.double().cpu(), found, rtol=2e-6, atol=1e-7)
    assert bool((errors.diff(dim=1) >= 0).all())
    for row in codes.tolist():
        assert len(set(row)) == k
    best = np.sort(every, axis=1)[:, :k]
    weight = 1.0 if metric is None else float(metric.max())
    slack = 4e-6 * weight * float(codebook.double().square().sum(1).max())
    assert (found <= best + slack).all()


def draw(generator, device, dtype, n: int, entries: int, g: int) -> list[torch.Tensor]:
    source = generator(n * 10007 + entries * 101 + g)
    sizes = [(n, g), (entries, g)]
    return [torch.randn(size, generator=source).to(device, dtype) for size in sizes]


@pytest.mark.parametrize(("entries", "g", "k"), [(1, 1, 1), (70, 8, 5), (130, 3, 2), (64, 20, 1)])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "metric"])
def test_assign_equals_enumeration(
    kind, entries, g, k, weighted, precision, generator, guard, device
):
    for n in (1, 66):
        target, codebook = map(guard, draw(generator, device, precision.dtype, n, entries, g))
        metric = None
        if weighted:
            metric = guard(torch.rand(n, g, generator=generator(n)).to(device, precision.dtype))
        check(target, codebook, k, metric)


def test_ragged_numbers_of_groups(kind, ragged, generator, guard, device):
    target, codebook = map(guard, draw(generator, device, torch.float32, ragged, 40, 4))
    check(target, codebook, 3)


def test_a_large_codebook_in_slices(kind, generator, guard, device):
    """Several programs share the codebook; the last slice is short."""
    target, codebook = map(guard, draw(generator, device, torch.float32, 5, 2500, 2))
    check(target, codebook, 3)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("entries", [300, 2200])
def test_of_equal_entries_the_lowest_numbers_win(kind, k, entries, device):
    """Copies of the nearest entry at distances 1, k, k + 1, a tile and a slice, and beyond.

    One target for each case: the metric shows it a column of the codebook that is its own.
    """
    cases = [
        [first + i * distance for i in range(k + 2) if first + i * distance < entries]
        for distance in {1, k, k + 1, 63, 64, 65, 128, 1024, 1087, 1088}
        for first in (0, 5, 63)
    ]
    codebook = torch.full((entries, len(cases)), 3.0)
    for column, ties in enumerate(cases):
        codebook[ties, column] = 1.0
    target = torch.zeros(len(cases), len(cases), device=device)
    metric = torch.eye(len(cases), device=device)
    codes, errors = assign(target, codebook.to(device), k, metric=metric)
    for ties, code, error in zip(cases, codes.tolist(), errors.tolist(), strict=True):
        others = [i for i in range(2 * k + 2) if i not in ties]
        assert code == (ties + others)[:k]
        assert error == ([1.0] * len(ties) + [9.0] * k)[:k]


@pytest.mark.parametrize("distance", [1, 2, 3, 64, 65])
def test_ties_without_a_metric(kind, distance, device):
    codebook = torch.full((140, 2), 3.0, device=device)
    codebook[[4, 4 + distance, 4 + 2 * distance]] = 1.0
    for k in (1, 2):
        codes, _ = assign(torch.zeros(1, 2, device=device), codebook, k)
        assert codes.tolist() == [[4, 4 + distance][:k]]


def test_ties_of_the_worst_entry_kept(kind, device):
    """Nearer entries come later and push out the highest of the equal ones."""
    codebook = torch.full((200, 1), 2.0, device=device)
    codebook[150] = 1.0
    codebook[70] = 0.5
    codes, _ = assign(torch.zeros(1, 1, device=device), codebook, 4)
    assert codes.tolist() == [[70, 150, 0, 1]]


@pytest.mark.parametrize("entries", [5, 9, 64, 65])
def test_all_entries_are_a_permutation_in_order(kind, entries, generator, device):
    target, codebook = draw(generator, device, torch.float32, 6, entries, 2)
    codes, errors = assign(target, codebook, entries)
    assert codes.sort(1).values.tolist() == [list(range(entries))] * 6
    order = np.sort(enumerate_errors(target, codebook), axis=1)
    np.testing.assert_allclose(errors.double().cpu(), order, rtol=1e-5)


def test_a_zero_in_the_metric_takes_a_column_out(kind, generator, device):
    target, codebook = draw(generator, device, torch.float32, 9, 33, 3)
    metric = torch.ones_like(target)
    metric[:, 1] = 0
    codes, _ = assign(target, codebook, 1, metric=metric)
    expected, _ = assign(target[:, ::2], codebook[:, ::2], 1)  # not contiguous either
    assert torch.equal(codes, expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NumPy
def test_nan_targets_give_codes_in_range(kind, device):
    """Distances that do not compare must not make a kernel read or write elsewhere."""
    target = torch.tensor([[float("nan")], [float("inf")], [1.0]], device=device)
    codebook = torch.arange(70.0, device=device)[:, None]
    codes, errors = assign(target, codebook, 3)
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 70
    assert codes[2].tolist() == [1, 0, 2]
    assert errors[2].tolist() == [0.0, 1.0, 1.0]
    assert not bool(errors[0, 0].isfinite())


def test_any_memory_layout(kind, generator, device):
    target, codebook = draw(generator, device, torch.float32, 24, 60, 8)
    strided = torch.randn(60, 24, generator=generator(1)).to(device).t()[:, ::3]  # [24, 20]
    books = torch.randn(20, 60, generator=generator(2)).to(device).t()
    check(strided, books, 2)
    check(target[::3], codebook[::2], 2, torch.rand(8, 1, device="cpu").to(device).expand(8, 8))


def test_no_groups(kind, device):
    codes, errors = assign(torch.zeros(0, 8, device=device), torch.zeros(16, 8, device=device), 2)
    assert codes.shape == errors.shape == (0, 2)


def test_float64_is_exact():
    target = torch.tensor([[1.0 + 1e-12]], dtype=torch.float64)
    codebook = torch.tensor([[1.0], [1.0 + 2e-12]], dtype=torch.float64)
    codes, errors = assign(target - 1e-13, codebook)
    assert codes.item() == 0
    assert errors.dtype == torch.float64


def test_errors():
    x, c = torch.zeros(3, 4), torch.zeros(5, 4)
    with pytest.raises(ValueError, match=r"codebook must have shape \[K, 4\], got \[5, 3\]"):
        assign(x, c[:, :3])
    with pytest.raises(ValueError, match=r"k must be in 1 \.\. 5, the codebook's size, got 6"):
        assign(x, c, 6)
    with pytest.raises(ValueError, match=r"metric must have shape \[3, 4\]"):
        assign(x, c, metric=x[0])
    with pytest.raises(TypeError, match="target must be one of float16"):
        assign(x.int(), c)
