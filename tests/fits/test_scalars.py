"""k-means of scalars: the least error of all partitions, and never worse than Lloyd's iteration."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pvopt import E8P, Diagonal, QuantizedScales, SharedValues
from pvopt.fits import nearest_centroid, nearest_scalar, scalar_kmeans

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=20, deadline=None, derandomize=True)
DOUBLE = torch.float64


def objective(points: Tensor, centroids: Tensor, weights: Tensor | None = None) -> float:
    squares = (points.double()[:, None] - centroids.double()).square().amin(1)
    return float((squares if weights is None else squares * weights.double()).sum())


def heavy(seed: int, n: int, degrees: float) -> Tensor:
    """Draw Student-t numbers."""
    draws = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, generator=draws, dtype=DOUBLE)
    rate = torch.randn(n, round(degrees), generator=draws, dtype=DOUBLE).square().mean(1)
    return (normal / rate.sqrt()).float()


def lloyd(points: Tensor, k: int, seed: int, weights: Tensor | None = None) -> float:
    """The squared error of 60 iterations over all points, from random points."""
    points = points.double()
    weights = torch.ones_like(points) if weights is None else weights.double()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    centroids = points[order[:k]].sort().values
    for _ in range(60):
        index = torch.bucketize(points, (centroids[1:] + centroids[:-1]) / 2)
        mass = torch.zeros_like(centroids).index_add_(0, index, weights)
        total = torch.zeros_like(centroids).index_add_(0, index, weights * points)
        centroids = torch.where(mass > 0, total / mass, centroids).sort().values
    return objective(points, centroids, weights)


@some
@given(seed=SEEDS, k=st.integers(1, 4), weighted=st.booleans(), integers=st.booleans())
def test_the_error_is_the_least_of_all_partitions(seed, k, weighted, integers):
    draws = torch.Generator().manual_seed(seed)
    points = torch.randn(9, generator=draws, dtype=DOUBLE)
    points = (2 * points).round() if integers else points
    weights = torch.rand(9, generator=draws, dtype=DOUBLE) if weighted else None
    found = scalar_kmeans(points, k, weights=weights)
    assert found.shape == (k,)
    assert torch.equal(found, found.sort().values)
    order = points.argsort()
    masses = (torch.ones(9, dtype=DOUBLE) if weights is None else weights)[order]
    best = torch.inf
    for ends in itertools.combinations(range(1, 9), k - 1):
        sizes = [b - a for a, b in itertools.pairwise((0, *ends, 9))]
        runs = zip(points[order].split(sizes), masses.split(sizes), strict=True)
        error = sum(float((m * (x - (m * x).sum() / m.sum()).square()).sum()) for x, m in runs)
        best = min(best, error)
    assert objective(points, found, weights) <= best * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("k", [4, 16, 300])
@pytest.mark.parametrize("degrees", [2, 4, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_error_is_that_of_lloyds_iteration_or_less(k, degrees, weighted):
    points = heavy(k, 6000, degrees)
    weights = heavy(1, 6000, 4).square() if weighted else None
    found = objective(points, scalar_kmeans(points, k, weights=weights), weights)
    assert found <= 1.02 * min(lloyd(points, k, seed, weights) for seed in range(3))


@pytest.mark.parametrize(("center", "width"), [(1.0, 1e-4), (-1e6, 1.0), (0.0, 1e-10), (0.0, 1e10)])
def test_where_points_lie_and_how_large_they_are_does_not_matter(center, width):
    points = center + width * heavy(0, 2000, 4).double()
    plain = objective(heavy(0, 2000, 4), scalar_kmeans(heavy(0, 2000, 4), 8))
    moved = objective(points, scalar_kmeans(points, 8)) / width**2
    assert moved == pytest.approx(plain, rel=1e-3)


@some
@given(seed=SEEDS, distinct=st.integers(1, 5), k=st.integers(5, 300))
def test_fewer_distinct_points_than_centroids(seed, distinct, k):
    draws = torch.Generator().manual_seed(seed)
    values = torch.randn(distinct, generator=draws, dtype=DOUBLE)
    points = values[torch.randint(distinct, (40,), generator=draws)]
    assert objective(points, scalar_kmeans(points, k)) < 1e-20


def test_weights_of_zero_count_as_nothing():
    points = torch.tensor([0.0, 1.0, 2.0, 50.0])
    found = scalar_kmeans(points, 2, weights=torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert objective(points[:2], found) == 0.0
    nothing = scalar_kmeans(points, 2, weights=torch.zeros(4))
    assert torch.equal(nothing, scalar_kmeans(points, 2))


def test_of_very_many_points_some_are_chosen(monkeypatch):
    monkeypatch.setattr("pvopt.fits.scalars._SORTED", 2000)
    points = heavy(3, 20000, 4)
    error = objective(points, scalar_kmeans(points, 8))
    assert error <= 1.1 * lloyd(points, 8, 0)
    weights = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    error = objective(points, scalar_kmeans(points, 8, weights=weights), weights)
    assert error <= 1.1 * lloyd(points, 8, 0, weights)


@some
@given(seed=SEEDS)
def test_nearest_is_as_by_enumeration(seed):
    draws = torch.Generator().manual_seed(seed)
    points = torch.randint(-9, 9, (50,), generator=draws).double() / 2
    centroids = torch.randint(-9, 9, (6,), generator=draws).double().unique()
    found = nearest_scalar(points, centroids)
    assert torch.equal(found, nearest_centroid(points[:, None], centroids[:, None]))


@pytest.mark.parametrize("arguments", [(torch.zeros(0), 2), (torch.zeros(3), 0)])
def test_nothing_to_cluster_is_refused(arguments):
    with pytest.raises(ValueError, match="needs points and k >= 1"):
        scalar_kmeans(*arguments)


def test_tables_of_values_and_of_scales_are_as_good():
    weight = heavy(0, 12000, 3).view(100, 120)
    importance = heavy(1, 12000, 4).square().view(100, 120)
    for metric in (None, Diagonal(importance)):
        rep = SharedValues(num_values=8).fit(weight, metric=metric)
        own = None if metric is None else importance.flatten()
        error = (rep.decode() - weight).double().square().flatten()
        error = float((error if own is None else error * own).sum())
        assert error <= 1.02 * min(lloyd(weight.flatten(), 8, seed, own) for seed in range(3))
    inner = E8P(bits=2, scale_group=8)
    scales = inner.fit(weight).values["scales"].flatten()
    table = QuantizedScales(inner=inner, bits=4).fit(weight).values["scales"]
    assert table.shape == (16,)
    assert objective(scales, table) < 0.03 * float((scales - scales.mean()).square().sum())
