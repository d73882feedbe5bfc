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
