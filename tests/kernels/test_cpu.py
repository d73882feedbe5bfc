"""What only the implementations for CPUs promise: exact nearest codes, any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt_kernels import (
    beam_search,
    codebook_grad,
    decode,
    decode_into,
    decoded_sq_norms,
    e8p_assign,
    e8p_decode,
    gather_groups,
    group_sq_norms,
    largest,
    matmul,
    pack_rows,
    smallest,
    stacked_codebook_grad,
    sum_by_code,
    uniform_decode,
    uniform_matmul,
    unpack_rows,
)
from pvopt_kernels.cpu.sum_by_code import slabs

pytest.importorskip("numba")

import numba

from pvopt_kernels.cpu import _blocks, _nearest
from pvopt_kernels.cpu._compiled.boxes import LEAF
from pvopt_kernels.cpu._compiled.parallel import ParallelLoop
from pvopt_kernels.cpu._compiled.scoring import LANES
from pvopt_kernels.cpu._nearest import _boxes, nearest_entries
from pvopt_kernels.cpu.e8p_assign import e8p_assign as compiled_e8p_assign


@pytest.fixture(autouse=True, scope="module")
def boxes_from_2048_entries():
    """Boxes where a brute force in float64 is still quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_nearest, "_MANY_ENTRIES", 2048)
        patch.setattr(_nearest, "_MANY_POINTS", 1)
        yield


def brute_force(points, entries, metric, k) -> tuple[np.ndarray, np.ndarray]:
    """Return codes and errors in float64; of equal errors the lower code comes first."""
    gaps = (points[:, None].double() - entries[None].double()).square()
    errors = (gaps if metric is None else gaps * metric[:, None].double()).sum(-1).numpy()
    codes = np.argsort(errors, axis=1, kind="stable")[:, :k]
    return codes, np.take_along_axis(errors, codes, 1)


def check_nearest(points, entries, metric, k) -> None:
    codes, errors = nearest_entries(points, entries, metric, k)
    expected, least = brute_force(points, entries, metric, k)
    assert codes.dtype == torch.int64
    assert errors.dtype == torch.float32
    assert codes.tolist() == expected.tolist()
    np.testing.assert_allclose(errors.numpy(), least, rtol=1e-6, atol=1e-9)


# Multiples of 1/8 have exact squares and sums in float32: ties are ties in both precisions.
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    group_size=st.sampled_from([3, 8]),
    k=st.sampled_from([1, 2, 5]),
    size=st.sampled_from([5, 16, 17, 256, 2048, 2500]),
    spread=st.sampled_from([1, 4, 40]),
    weighted=st.booleans(),
)
def test_nearest_entries_are_exact_with_ties(seed, group_size, k, size, spread, weighted):
    source = torch.Generator().manual_seed(seed)
    points, entries = (
        torch.randint(-spread, spread + 1, (n, group_size), generator=source) / 8
        for n in (20, size)
    )
    metric = torch.randint(0, 4, points.shape, generator=source).float() if weighted else None
    check_nearest(points, entries, metric, k)


@pytest.mark.parametrize("size", [2048, 5000])
@pytest.mark.parametrize("k", [1, 3])
def test_ties_planted_around_boxes(size, k):
    """Copies of one entry at distances of a lane, a box and more: the first ones win."""
    source = torch.Generator().manual_seed(size)
    for distance in (1, 15, 16, 17, LEAF - 1, LEAF, LEAF + 1, 1024):
        entries = torch.randn(size, 8, generator=source)
        places = [3 + distance * i for i in (1, 0, 3, 2, 4) if 3 + distance * i < size]
        entries[places] = torch.full((8,), 0.25)
        points = torch.full((2, 8), 0.25)
        codes, errors = nearest_entries(points, entries, None, k)
        first = sorted(places)[:k]
        assert codes[:, : len(first)].tolist() == [first] * 2
        assert errors[:, : len(first)].tolist() == [[0.0] * len(first)] * 2


def test_box_search_of_outliers_and_clusters():
    source = torch.Generator().manual_seed(0)
    entries = torch.randn(4096, 8, generator=source)
    entries[:100] *= 50
    entries[1000:3000] = entries[1000] + 1e-3 * torch.randn(2000, 8, generator=source)
    points = torch.cat([entries[::97] + 0.01, 100 * torch.randn(40, 8, generator=source)])
    check_nearest(points, entries, None, 1)


@pytest.mark.parametrize("case", ["random", "sorted", "falling", "equal", "few values", "outliers"])
def test_boxes_hold_every_entry_once_inside_their_corners(case):
    """Of any order of the entries, whole halves: selection must not lose or repeat one."""
    count, group_size = 5000, 3
    entries = torch.randn(count, group_size, generator=torch.Generator().manual_seed(7))
    if case in ("sorted", "falling"):
        entries = entries.sort(0, descending=case == "falling").values
    elif case == "equal":
        entries[:] = -1.5
    elif case == "few values":
        entries.round_()
    elif case == "outliers":
        entries[::9] *= 1e6
    book = entries.numpy()
    columns, numbers, low, high, run_low, run_high = _boxes(book)
    boxes = len(numbers) // LEAF
    runs = boxes // LANES
    assert sorted(numbers) == list(range(boxes * LEAF))
    numbers = numbers.reshape(boxes, LEAF)
    inside = book[numbers % count]  # [boxes, LEAF, g]
    expected = np.where((numbers < count)[..., None], inside, np.inf).swapaxes(1, 2)
    np.testing.assert_array_equal(columns.reshape(boxes, group_size, LEAF), expected)
    for corners, of_runs, reduce in ((low, run_low, np.min), (high, run_high, np.max)):
        corners = corners.reshape(runs, group_size, LANES).swapaxes(1, 2)
        np.testing.assert_array_equal(corners.reshape(boxes, group_size), reduce(inside, axis=1))
        of_runs = of_runs.reshape(group_size, -1)[:, :runs].T
        np.testing.assert_array_equal(of_runs, reduce(corners, axis=1))
    if case != "equal":  # halves are halves: the boxes' volume is far below that of the whole
        sizes = (inside.max(1) - inside.min(1)) / (book.max(0) - book.min(0))
        assert np.median(sizes.prod(1)) < 0.02


def test_boxes_are_halves_along_the_longest_axis():
    """Two boxes' worth of entries a run: the first cut separates the halves of the long axis."""
    entries = torch.rand(LANES * LEAF, 3, generator=torch.Generator().manual_seed(8))
    entries[:, 1] *= 100
    _, numbers, *_ = _boxes(entries.numpy())
    first, second = entries[numbers.reshape(2, -1), 1]
    assert first.max() < second.min()
    order = entries[:, 1].argsort().view(LANES, LEAF)  # the only axis that is ever cut
    assert [sorted(box) for box in numbers.reshape(LANES, LEAF).tolist()] == [
        sorted(box) for box in order.tolist()
    ]


@pytest.mark.parametrize("size", [300, 2500])  # entry by entry, and by boxes
def test_nearest_entries_of_a_stack(size):
    source = torch.Generator().manual_seed(size)
    points = torch.randn(60, 8, generator=source)
    stack = torch.randn(3, size, 8, generator=source)
    metric = torch.rand(60, 8, generator=source)
    for d in (None, metric):
        together = nearest_entries(points, stack, d, 3)
        for w, entries in enumerate(stack):
            part = slice(20 * w, 20 * w + 20)
            alone = nearest_entries(points[part], entries, None if d is None else d[part], 3)
            assert all(torch.equal(t[part], a) for t, a in zip(together, alone, strict=True))


def test_few_points_skip_the_boxes(monkeypatch):
    monkeypatch.setattr(_nearest, "_MANY_POINTS", 30)
    monkeypatch.setattr(_nearest, "_boxes", lambda book: pytest.fail("boxes for 20 points"))
    source = torch.Generator().manual_seed(9)
    check_nearest(
        torch.randn(20, 8, generator=source), torch.randn(2048, 8, generator=source), None, 2
    )


def test_points_that_are_not_finite_get_some_code():
    points = torch.zeros(3, 8)
    points[0, 0], points[1, 0] = float("nan"), float("inf")
    for size in (5, 3000):
        entries = torch.arange(8.0 * size).view(size, 8)
        codes, _ = nearest_entries(points, entries, None, 1)
        assert bool(((codes >= 0) & (codes < size)).all())
        books = torch.stack([entries[:5], entries[:5]])
        start = torch.ones(3, 2, dtype=torch.int64)
        found = beam_search(points, books, start, 3, beam_size=3, order=[1, 0])
        assert bool(((found >= 0) & (found < 5)).all())


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", [[0, 1], [1, 0], [1]])
def test_a_beam_of_everything_finds_the_best_combinations(monkeypatch, k, weighted, order):
    """With all combinations kept the search is an enumeration, for any order of visits."""
    monkeypatch.setenv("PVOPT_KERNELS", "cpu")
    source = torch.Generator().manual_seed(1)
    target = torch.randn(15, 8, generator=source)
    books = torch.randn(2, 9, 8, generator=source)
    start = torch.randint(9, (15, 2), generator=source)
    metric = torch.rand(15, 8, generator=source) if weighted else None
    found = beam_search(target, books, start, k, beam_size=81, order=order, metric=metric)
    for i in range(15):
        first = range(9) if 0 in order else [int(start[i, 0])]
        pairs = [(a, b) for a in first for b in range(9)]
        gaps = [(target[i] - books[0, a] - books[1, b]).double().square() for a, b in pairs]
        errors = [float((g if metric is None else g * metric[i].double()).sum()) for g in gaps]
        best = sorted(range(len(pairs)), key=errors.__getitem__)[:k]
        assert [tuple(row) for row in found[i].tolist()] == [pairs[j] for j in best]


def test_the_beam_search_equals_the_reference(monkeypatch):
    """Random scores have no ties, so both keep the same beams."""
    source = torch.Generator().manual_seed(2)
    target = torch.randn(200, 8, generator=source)
    books = torch.randn(3, 256, 8, generator=source)
    start = torch.randint(256, (200, 3), generator=source)
    for k, beam_size in ((1, 5), (4, 4), (20, 2)):
        found = []
        for kind in ("cpu", "reference"):
            monkeypatch.setenv("PVOPT_KERNELS", kind)
            found.append(beam_search(target, books, start, k, beam_size=beam_size, order=[2, 0, 1]))
        assert torch.equal(*found)


@pytest.mark.parametrize("distinct", [2, 50, 10**6])
@pytest.mark.parametrize("k", [32, 100, 1500])
def test_smallest_of_long_rows_equals_a_stable_sort(monkeypatch, distinct, k):
    monkeypatch.setenv("PVOPT_KERNELS", "cpu")
    source = torch.Generator().manual_seed(k)
    scores = torch.randint(distinct, (3, 1500), generator=source).float()
    values, indices = smallest(scores, k)
    expected = scores.sort(dim=1, stable=True)
    assert torch.equal(values, expected.values[:, :k])
    assert torch.equal(indices, expected.indices[:, :k])
    scores[0, ::2] = float("nan")
    values, indices = smallest(scores, k)
    assert torch.equal(indices[0].sort().values.unique(), indices[0].sort().values)
    assert bool(values[0, : min(k, 750)].isfinite().all())


@pytest.fixture(scope="module")
def e8p_points() -> torch.Tensor:
    """All points, ``[2**16, 8]``, by 256 times the first code plus the second."""
    codes = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    return e8p_decode(codes, torch.float64)


# Targets are multiples of 1/8, weights small integers: all sums are exact in float32.
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.sampled_from([1, 1, 2, 5, 8, 16, 17, 64]),
    spread=st.sampled_from([1, 4, 12, 40]),
    weights=st.sampled_from([None, 1, 4]),
)
def test_nearest_points_of_e8p_equal_the_full_table(e8p_points, seed, k, spread, weights):
    source = torch.Generator().manual_seed(seed)
    target = torch.randint(-spread, spread + 1, (6, 8), generator=source) / 8
    metric = None
    if weights is not None:
        metric = torch.randint(weights + 1, (6, 8), generator=source).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PVOPT_KERNELS", "cpu")
        found = compiled_e8p_assign(target, k, metric=metric)
    assert found.dtype == torch.int64
    for i, codes in enumerate((found[..., 0] * 256 + found[..., 1]).tolist()):
        assert len(set(codes)) == k
        gaps = (e8p_points - target[i].double()).square()
        errors = (gaps if metric is None else gaps * metric[i].double()).sum(1)
        expected = errors.topk(k, largest=False).values  # sorted
        assert errors[codes].tolist() == expected.tolist()


@pytest.mark.parametrize("k", [1, 2, 8])
def test_every_point_of_e8p_is_its_own_nearest(e8p_points, k):
    for metric in (None, torch.rand(1 << 16, 8, generator=torch.Generator().manual_seed(6)) + 0.1):
        found = e8p_assign(e8p_points.float(), k, metric=metric)[:, 0]
        assert torch.equal(found[:, 0] * 256 + found[:, 1], torch.arange(1 << 16))


@pytest.mark.parametrize("k", [1, 4, 40])
def test_e8p_codes_of_random_targets_equal_the_reference(k):
    """No ties; the reference in float64."""
    source = torch.Generator().manual_seed(k)
    target = torch.randn(1000, 8, generator=source)
    metric = torch.rand(1000, 8, generator=source)
    for d in (None, metric):
        found = e8p_assign(target, k, metric=d)
        expected = e8p_assign(target.double(), k, metric=None if d is None else d.double())
        points, wanted = (e8p_decode(codes, torch.float64) for codes in (found, expected))
        gaps = [(x - target[:, None].double()).square() for x in (points, wanted)]
        errors = [(x if d is None else x * d[:, None].double()).sum(-1) for x in gaps]
        torch.testing.assert_close(errors[0], errors[1], rtol=1e-6, atol=1e-6)
        assert float((found == expected).all(-1).double().mean()) > 0.998


def test_e8p_targets_that_are_not_finite_get_some_code():
    target = torch.zeros(100, 8)
    target[0, 0], target[1, 3], target[2], target[3] = float("nan"), float("inf"), -1e30, 1e15
    for k in (1, 4, 20):
        found = e8p_assign(target, k)
        assert bool(((found >= 0) & (found < 256)).all())
        assert torch.equal(found[4:], found[4].expand(96, -1, -1))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.integers(1, 8),
    rows=st.integers(1, 5),
    scales=st.integers(1, 3),
    size=st.integers(1, 40),
    tokens=st.integers(1, 9),
    symmetric=st.booleans(),
)
def test_grids_of_every_width_equal_float64(seed, bits, rows, scales, size, tokens, symmetric):
    """Rows of any length, so that words of eight bytes end beyond rows and beyond the array."""
    source = torch.Generator().manual_seed(seed)
    columns = scales * size
    packed = pack_rows(torch.randint(1 << bits, (rows, columns), generator=source), bits)
    steps = torch.randn(rows, scales, generator=source)
    zeros = None if symmetric else torch.randn(rows, scales, generator=source)
    x = torch.randn(tokens, columns, generator=source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PVOPT_KERNELS", "cpu")
        found = uniform_decode(packed, steps, zeros, bits=bits, columns=columns)
        product = uniform_matmul(x, packed, steps, zeros, bits=bits, columns=columns)
    levels = unpack_rows(packed, bits, columns).double().view(rows, scales, size)
    centre = torch.tensor(float(1 << bits >> 1)) if zeros is None else zeros[..., None]
    expected = ((levels - centre.double()) * steps[..., None].double()).view(rows, columns)
    # Levels of up to 2^bits, and sums of up to 120 of them, are rounded in float32.
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6 * 2.0**bits)
    wanted = x.double() @ expected.T
    torch.testing.assert_close(product.double(), wanted, rtol=1e-5, atol=1e-5 * 2.0**bits)


@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_several_blocks_equal_those_of_one(monkeypatch, transposed):
    """Blocks of two block rows of three, the last one not whole."""
    monkeypatch.setenv("PVOPT_KERNELS", "cpu")
    source = torch.Generator().manual_seed(5)
    codes = torch.randint(16, (7, 4, 2), generator=source)
    books, scales = torch.randn(2, 16, 12, generator=source), torch.rand(7, 2, generator=source)
    packed = pack_rows(torch.randint(8, (21, 16), generator=source), 3)
    x = torch.randn(20, 21 if transposed else 16, generator=source)

    def products() -> list[torch.Tensor]:
        grid = packed, torch.ones(21, 1), None
        return [
            matmul(x, codes, books, scales, out_group=3, transposed=transposed),
            uniform_matmul(x, *grid, bits=3, columns=16, transposed=transposed),
        ]

    whole = products()
    monkeypatch.setattr(_blocks, "_BLOCK", 2 * 3 * 16)
    for found, expected in zip(products(), whole, strict=True):
        torch.testing.assert_close(found, expected)


def operations() -> dict[str, Callable[[], torch.Tensor]]:
    source = torch.Generator().manual_seed(3)
    target = torch.randn(4000, 8, generator=source)
    books = torch.randn(2, 256, 8, generator=source)
    large = torch.randn(1, 4096, 8, generator=source)  # in boxes
    codes = torch.randint(256, (4000, 2), generator=source)
    weight = codes.view(100, 40, 2), books, torch.rand(100, 4, generator=source)
    dense = target.view(100, 320)
    pairs = torch.randint(256, (40000, 2), generator=source)
    narrow = torch.randint(256, (1100, 150, 2), generator=source, dtype=torch.uint8)
    by_tables = narrow, books, torch.rand(1100, 1, generator=source)
    levels = torch.randint(8, (700, 320), generator=source)
    steps, zeros = torch.rand(2, 700, 5, generator=source)
    grid = pack_rows(levels, 3), steps, zeros
    tall = [part.repeat(3, 1) for part in grid]  # enough rows for two threads by digits
    stack = [torch.stack([part, part.flip(0)]) for part in weight]
    listed = [dense, dense.flip(1)]
    places = torch.stack([torch.randperm(4000, generator=source) for _ in range(2)])

    def decoded() -> torch.Tensor:
        outs = [torch.empty(100, 320) for _ in range(2)]
        decode_into(outs, *stack)
        return torch.stack(outs)

    return {
        "decode_into": decoded,
        "decoded_sq_norms": lambda: torch.cat(
            [x.flatten() for x in decoded_sq_norms(listed, *stack)]
        ),
        "stacked_codebook_grad": lambda: torch.cat(
            [x.flatten() for x in stacked_codebook_grad(listed, *stack)]
        ),
        "gather_groups": lambda: gather_groups(listed, places, in_group=8),
        "largest": lambda: largest(target.view(4, 8000).repeat(1, 5).round(decimals=1), 300)[1],
        "beam_search of a stack": lambda: beam_search(
            target, stack[1], codes, 2, beam_size=5, order=[1, 0]
        ),
        "beam_search": lambda: beam_search(target, books, codes, 2, beam_size=5, order=[1, 0]),
        "nearest": lambda: beam_search(target, large, codes[:, :1], 1, beam_size=1, order=[0]),
        "group_sq_norms": lambda: group_sq_norms(target, target.flip(0), in_group=8),
        "sum_by_code": lambda: sum_by_code(target, codes[:, 0], 256),
        "decode": lambda: decode(*weight),
        "codebook_grad": lambda: torch.cat([x.flatten() for x in codebook_grad(dense, *weight)]),
        "e8p_assign": lambda: e8p_assign(target, 3, metric=target.square()),
        "e8p_decode": lambda: e8p_decode(pairs),
        "uniform_decode": lambda: uniform_decode(*grid, bits=3, columns=320),
        "uniform_matmul of 8 tokens": lambda: uniform_matmul(dense[:8], *grid, bits=3, columns=320),
        "uniform_matmul of a token": lambda: uniform_matmul(dense[0], *tall, bits=3, columns=320),
        "matmul of a token": lambda: matmul(dense[:1], *weight),
        "matmul by tables": lambda: matmul(target.view(-1)[:3600].view(3, 1200), *by_tables),
    }


@pytest.mark.parametrize("name", list(operations()))
def test_the_number_of_threads_changes_nothing(monkeypatch, name):
    monkeypatch.setenv("PVOPT_KERNELS", "cpu")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2, 2):
            torch.set_num_threads(threads)
            results.append(operations()[name]())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_the_gradient_of_a_large_weight_is_summed_in_several_tables(monkeypatch):
    """More tables than threads, cut inside neither rows nor scales."""
    monkeypatch.setenv("PVOPT_KERNELS", "cpu")
    source = torch.Generator().manual_seed(4)
    codes = torch.randint(16, (37, 60, 2), generator=source)
    books = torch.randn(2, 16, 8, generator=source)
    scales = torch.rand(37, 3, generator=source)
    gradient = torch.randn(37, 480, generator=source)
    assert slabs(gradient.numel(), books.numel()) == 16
    found = codebook_grad(gradient, codes, books, scales)
    expected = codebook_grad(gradient.double(), codes, books.double(), scales.double())
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5)


def owners(out, size, parts):
    """Write down which part has worked on a number."""
    for part in numba.prange(parts):
        for n in range(size * part // parts, size * (part + 1) // parts):
            out[n] += part + 1


@pytest.mark.parametrize(
    ("threads", "least", "expected"),
    [(1, 1, "1111111"), (2, 1, "1112222"), (3, 1, "1122333"), (3, 3, "1112222"), (2, 4, "1111111")],
)
def test_parts_are_disjoint_and_complete(threads, least, expected):
    loop, out = ParallelLoop(owners), np.zeros(9, np.int64)
    before, mask = torch.get_num_threads(), numba.get_num_threads()
    try:
        torch.set_num_threads(threads)
        loop(out, size=0)
        loop(out, size=7, least=least)
    finally:
        torch.set_num_threads(before)
    assert "".join(map(str, out)) == expected + "00"
    assert numba.get_num_threads() == mask


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_NUMBERS = """
import torch
from pvopt_kernels import (
    beam_search,
    codebook_grad,
    decode,
    group_sq_norms,
    matmul,
    smallest,
    sum_by_code,
)
source = torch.Generator().manual_seed(0)
target = torch.randn(6000, 8, generator=source)
books = torch.randn(2, 16, 8, generator=source)
codes = torch.randint(16, (6000, 2), generator=source)
found = beam_search(target, books, codes, 1, beam_size=4, order=[0, 1])[:, 0]
decoded = books[0][found[:, 0]] + books[1][found[:, 1]]
errors = group_sq_norms(target, decoded, in_group=8)
sums = sum_by_code(target, codes[:, 0], 16)
least = smallest(errors[None], 100)[0]
print(*(float(x.double().square().sum()) for x in (errors, sums, least)))
"""


def test_everything_works_without_numba():
    blocked = "import sys; sys.modules['numba'] = None\n" + _NUMBERS
    outcome = run(blocked + "print('numba' in sys.modules and sys.modules['numba'] is not None)")
    numbers, imported = outcome.splitlines()
    assert imported == "False"
    expected = [float(x) for x in run(_NUMBERS).split()]
    assert [float(x) for x in numbers.split()] == pytest.approx(expected, rel=1e-5)


def test_numba_is_not_imported_before_it_is_needed():
    code = "import sys, pvopt, pvopt_kernels.cpu.beam_search; print('numba' in sys.modules)"
    assert run(code).strip() == "False"


def test_parts_run_on_several_threads_but_not_in_a_forked_process():
    code = """
import os, numba, numpy, torch
from pvopt_kernels.cpu._compiled.parallel import ParallelLoop

def threads(out, size, parts):
    for part in numba.prange(parts):
        for n in range(size * part // parts, size * (part + 1) // parts):
            out[n] = numba.get_thread_id()

out = numpy.zeros(2, numpy.int64)
loop = ParallelLoop(threads)
torch.set_num_threads(2)
loop(out, size=2)
print(sorted(out.tolist()), flush=True)
child = os.fork()
if child == 0:
    loop(out, size=2)
    print(out.tolist(), flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    assert run(code, NUMBA_NUM_THREADS="2").splitlines() == ["[0, 1]", "[0, 0]", "0"]


def test_starting_the_threads_leaves_those_of_torch_alone():
    """Two threads of numba; the third of torch would be gone after the first call."""
    code = """
import torch
from pvopt_kernels import group_sq_norms
torch.set_num_threads(3)
group_sq_norms(torch.ones(4096, 64), torch.zeros(4096, 64), in_group=8)
print(torch.get_num_threads())
"""
    assert run(code, NUMBA_NUM_THREADS="2", PVOPT_KERNELS="cpu").strip() == "3"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    blocked = str(tmp_path / "file" / "folder")  # below a file no folder can be made
    code = """
import torch
from pvopt_kernels import group_sq_norms
print(group_sq_norms(torch.ones(2, 4), torch.zeros(2, 4), in_group=4).tolist())
"""
    assert run(code, NUMBA_CACHE_DIR=blocked, PVOPT_KERNELS="cpu").strip() == "[4.0, 4.0]"
