"""smallest against a sort, and the beam search's chunks."""

from __future__ import annotations

import pytest
import torch

from pvopt_kernels.ops import beam_search, smallest

SIZES = [1, 2, 15, 16, 31, 32, 48, 64, 160, 256, 257, 1280, 8192, 16384]


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("k", [1, 2, 5, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_smallest_equals_a_sort(m, k, dtype):
    if k > m:
        pytest.skip("more than there are")
    generator = torch.Generator().manual_seed(m * 100 + k)
    scores = torch.randn(9, m, generator=generator, dtype=dtype)
    values, indices = smallest(scores, k)
    assert values.shape == indices.shape == (9, k)
    assert indices.dtype == torch.int64
    expected = scores.sort(dim=1)
    assert torch.equal(values, expected.values[:, :k])
    assert torch.equal(indices, expected.indices[:, :k])


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_smallest_with_ties_returns_distinct_entries_of_the_smallest_values(m, k):
    """Ties everywhere: few distinct values, so blocks share their minima."""
    if k > m:
        pytest.skip("more than there are")
    generator = torch.Generator().manual_seed(m * 100 + k)
    for levels in (1, 2, 3):
        scores = torch.randint(levels, (20, m), generator=generator).float()
        values, indices = smallest(scores, k)
        assert torch.equal(values, scores.sort(dim=1).values[:, :k])
        assert torch.equal(scores.gather(1, indices), values)
        for row in indices.tolist():
            assert len(set(row)) == k


@pytest.mark.parametrize("m", [256, 1280, 8192])
@pytest.mark.parametrize("blocks", [8, 16, 32])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_smallest_with_ties_planted_at_distances_of_blocks(m, blocks, k):
    """Equal minima side by side, and one block (contiguous or strided) apart, with one beyond."""
    width = m // blocks
    for distance in {1, blocks - 1, blocks, blocks + 1, width - 1, width, width + 1}:
        for first in (0, 3, width - 1, width, m - 1 - 2 * distance):
            ties = [first, first + distance]
            third = first + 2 * distance
            if first < 0 or third >= m:
                continue
            scores = torch.full((2, m), 5.0)
            scores[:, ties] = 1.0
            scores[:, third] = 2.0
            values, indices = smallest(scores, k)
            assert values.tolist() == [[1.0, 1.0, 2.0][:k]] * 2
            for row in indices.tolist():
                assert len(set(row)) == k
                assert set(row[:2]) <= set(ties)
                assert row[2:] == [third][: max(0, k - 2)]


@pytest.mark.parametrize("stride", [1, 40, 80, 160])
def test_smallest_with_all_of_them_in_one_block(stride):
    scores = torch.arange(1280.0)[None] + 100
    wanted = [7 + stride * i for i in range(5)]
    scores[0, wanted] = torch.arange(5.0)
    assert smallest(scores, 5)[1].tolist() == [wanted]


def test_smallest_of_no_rows():
    values, indices = smallest(torch.empty(0, 64), 2)
    assert values.shape == indices.shape == (0, 2)


def draw(n: int, books: int, entries: int, g: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(n, g, generator=generator, dtype=torch.float64)
    codebooks = torch.randn(books, entries, g, generator=generator, dtype=torch.float64)
    codes = torch.randint(entries, (n, books), generator=generator)
    return target, codebooks, codes


def total_error(target: torch.Tensor, codebooks: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    total = sum(book[code] for book, code in zip(codebooks, codes.unbind(-1), strict=True))
    return (target[:, None] - total).square().sum(-1)


def test_beam_search_in_many_chunks_equals_one_group_at_a_time():
    target, codebooks, codes = draw(40, 2, 4096, 2)  # chunks of 16 groups
    options = {"beam_size": 64, "order": [1, 0]}
    together = beam_search(target, codebooks, codes, 2, **options)
    for i in range(0, 40, 7):
        alone = beam_search(target[i : i + 1], codebooks, codes[i : i + 1], 2, **options)
        assert torch.equal(alone[0], together[i])


def test_beam_search_of_no_groups():
    target, codebooks, codes = draw(0, 2, 8, 2)
    assert beam_search(target, codebooks, codes, 1, beam_size=2, order=[0, 1]).shape == (0, 1, 2)


def test_beam_search_is_sorted_distinct_and_leaves_its_input_alone():
    target, codebooks, codes = draw(30, 3, 8, 2)
    before = codes.clone()
    found = beam_search(target, codebooks, codes, 5, beam_size=8, order=[2, 0, 1])
    assert torch.equal(codes, before)
    assert found.shape == (30, 5, 3)
    errors = total_error(target, codebooks, found)
    assert bool((errors.diff(dim=1) >= -1e-12).all())
    for row in found.tolist():
        assert len({tuple(code) for code in row}) == 5


def test_books_outside_the_order_keep_their_codes():
    target, codebooks, codes = draw(30, 3, 8, 2)
    found = beam_search(target, codebooks, codes, 1, beam_size=4, order=[1])[:, 0]
    assert torch.equal(found[:, [0, 2]], codes[:, [0, 2]])
    rest = target - codebooks[0][codes[:, 0]] - codebooks[2][codes[:, 2]]
    best = (rest[:, None] - codebooks[1]).square().sum(-1).argmin(1)
    assert torch.equal(found[:, 1], best)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_beam_search_is_never_worse_than_its_start_in_any_metric(beam_size):
    target, codebooks, codes = draw(50, 3, 4, 3)
    metric = torch.rand(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for weights in (None, metric):
        found = beam_search(
            target, codebooks, codes, 1, beam_size=beam_size, order=[0, 1, 2], metric=weights
        )[:, 0]

        def measure(z: torch.Tensor, weights: torch.Tensor | None = weights) -> torch.Tensor:
            total = sum(book[c] for book, c in zip(codebooks, z.unbind(1), strict=True))
            squares = (target - total).square()
            return (squares if weights is None else squares * weights).sum(1)

        assert bool((measure(found) <= measure(codes) + 1e-12).all())
        assert bool((measure(found) < measure(codes)).any())


# Every implementation, through the operation.


def oracle(target, codebooks, codes, k, beam_size, order, metric=None) -> list[list[float]]:
    """Beam search by float64 enumeration of one group at a time; the errors of what it returns."""
    found = []
    for n in range(len(target)):
        d = torch.ones_like(target[n]) if metric is None else metric[n]
        beams = {tuple(codes[n].tolist())}
        for m in order:
            tries = {
                (*beam[:m], entry, *beam[m + 1 :])
                for beam in beams
                for entry in range(codebooks.shape[1])
            }
            ranked = sorted(tries, key=lambda z: measure(target[n], codebooks, z, d))
            beams = ranked[: max(beam_size, k)]
        found.append(sorted(measure(target[n], codebooks, z, d) for z in beams)[:k])
    return found


def measure(target, codebooks, codes, d) -> float:
    total = sum(book[code] for book, code in zip(codebooks, codes, strict=True))
    return float((d * (target - total).square()).sum())


@pytest.mark.parametrize(
    ("books", "entries", "g", "beam_size", "k", "order"),
    [
        (1, 70, 8, 4, 3, [0]),
        (2, 9, 8, 5, 2, [1, 0]),
        (2, 70, 3, 8, 8, [0, 1]),
        (3, 5, 4, 3, 1, [2, 0, 1]),
        (4, 3, 2, 1, 1, [1, 3]),
        (3, 2, 5, 16, 16, [0, 1, 2]),
        (2, 9, 1, 2, 1, []),
    ],
)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "metric"])
def test_beam_search_equals_enumeration(
    kind, books, entries, g, beam_size, k, order, weighted, generator, guard, device
):
    n = 11
    source = generator(books * 100 + entries + g)
    target = torch.randn(n, g, generator=source)
    codebooks = torch.randn(books, entries, g, generator=source)
    codes = torch.randint(entries, (n, books), generator=source)
    metric = torch.rand(n, g, generator=source) if weighted else None
    expected = oracle(
        target.double(),
        codebooks.double(),
        codes,
        k,
        beam_size,
        order,
        None if metric is None else metric.double(),
    )
    found = beam_search(
        guard(target.to(device)),
        guard(codebooks.to(device)),
        guard(codes.to(device)),
        k,
        beam_size=beam_size,
        order=order,
        metric=None if metric is None else guard(metric.to(device)),
    ).cpu()
    assert found.dtype == torch.int64
    assert found.shape == (n, len(expected[0]), books)
    for i in range(n):
        d = torch.ones(g) if metric is None else metric[i]
        rows = found[i].tolist()
        assert len({tuple(row) for row in rows}) == len(rows)
        errors = [measure(target[i].double(), codebooks.double(), row, d.double()) for row in rows]
        torch.testing.assert_close(errors, expected[i], rtol=1e-5, atol=1e-5)


def test_dtypes_of_targets_and_codes(kind, precision, generator, device):
    source = generator(5)
    target = torch.randn(9, 8, generator=source).to(device, precision.dtype)
    codebooks = torch.randn(2, 16, 8, generator=source).to(device, precision.dtype)
    codes = torch.randint(16, (9, 2), generator=source).to(device)
    options = {"beam_size": 4, "order": [1, 0]}
    found = [
        beam_search(target, codebooks, codes.to(dtype), 2, **options)
        for dtype in (torch.int8, torch.int16, torch.int64)
    ]
    exact = beam_search(target.float(), codebooks.float(), codes, 2, **options)
    assert all(torch.equal(f, exact) for f in found)


def test_any_memory_layout(kind, generator, device):
    source = generator(6)
    target = torch.randn(4, 9, generator=source).to(device).t()
    codebooks = torch.randn(4, 12, 2, generator=source).to(device).permute(2, 1, 0)
    codes = torch.randint(12, (2, 9), generator=source).to(device).t()
    metric = torch.rand(9, 1, generator=source).to(device).expand(9, 4)
    options = {"beam_size": 3, "order": [0, 1]}
    found = beam_search(target, codebooks, codes, 1, metric=metric, **options)
    expected = beam_search(target.contiguous(), codebooks.contiguous(), codes.contiguous(), 1,
                           metric=metric.contiguous(), **options)  # fmt: skip
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's NumPy
def test_nan_targets_give_codes_in_range_and_spoil_no_other_group(kind, generator, device):
    source = generator(7)
    target = torch.randn(9, 4, generator=source).to(device)
    codebooks = torch.randn(2, 12, 4, generator=source).to(device)
    codes = torch.randint(12, (9, 2), generator=source).to(device)
    options = {"beam_size": 3, "order": [0, 1]}
    expected = beam_search(target, codebooks, codes, 2, **options)
    target[4, 1] = float("nan")
    found = beam_search(target, codebooks, codes, 2, **options)
    assert int(found.min()) >= 0
    assert int(found.max()) < 12
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(found[others], expected[others])


@pytest.mark.parametrize(
    ("each", "books", "order"),
    [(0, 2, [1, 0]), (1, 1, [0]), (7, 2, [1]), (7, 2, []), (17, 2, [1, 0]), (17, 3, [2, 0])],
)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "metric"])
def test_a_stack_has_the_bits_of_a_search_for_each_weight(
    kind, each, books, order, weighted, generator, guard, device
):
    weights, entries, g = 3, 19, 5
    source = generator(books * 10 + each)
    n = weights * each
    target = torch.randn(n, g, generator=source).to(device)
    codebooks = torch.randn(weights, books, entries, g, generator=source).to(device)
    codes = torch.randint(entries, (n, books), generator=source).to(device)
    metric = torch.rand(n, g, generator=source).to(device) if weighted else None
    options = {"beam_size": 4, "order": order}
    found = beam_search(
        guard(target), guard(codebooks), guard(codes), 3,
        metric=None if metric is None else guard(metric), **options,
    )  # fmt: skip
    alone = []
    for w in range(weights):
        part = slice(w * each, (w + 1) * each)
        own = None if metric is None else metric[part]
        alone.append(beam_search(target[part], codebooks[w], codes[part], 3, metric=own, **options))
    assert torch.equal(found, torch.cat(alone))


def test_no_weights(kind, device):
    none = torch.zeros(0, 2, 9, 4, device=device)
    codes = torch.zeros(0, 2, dtype=torch.int64, device=device)
    found = beam_search(torch.zeros(0, 4, device=device), none, codes, 2, beam_size=3, order=[0, 1])
    assert found.shape == (0, 2, 2)


def test_errors():
    with pytest.raises(ValueError, match="as many rows for each of the 2 weights, got 3"):
        beam_search(
            torch.zeros(3, 4), torch.zeros(2, 1, 5, 4), torch.zeros(3, 1).long(), 1,
            beam_size=1, order=[0],
        )  # fmt: skip
    target, codebooks, codes = torch.zeros(3, 4), torch.zeros(2, 5, 4), torch.zeros(3, 2).long()
    with pytest.raises(ValueError, match=r"order must name codebooks 0 \.\. 1, each at most once"):
        beam_search(target, codebooks, codes, 1, beam_size=1, order=[1, 1])
    with pytest.raises(ValueError, match=r"codes must have shape \[3, 2\], got \[3, 1\]"):
        beam_search(target, codebooks, codes[:, :1], 1, beam_size=1, order=[0])
    with pytest.raises(ValueError, match="k and beam_size must be positive, got 1 and 0"):
        beam_search(target, codebooks, codes, 1, beam_size=0, order=[0])
    with pytest.raises(TypeError, match=r"codes must be one of uint8.*got torch\.float32"):
        beam_search(target, codebooks, codes.float(), 1, beam_size=1, order=[0])
