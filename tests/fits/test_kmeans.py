"""k-means: exact where it can be, weighted, never left with a useless cluster."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pvopt.fits import kmeans, nearest_centroid

SEEDS = st.integers(0, 2**32 - 1)
some = settings(max_examples=20, deadline=None, derandomize=True)
DOUBLE = torch.float64


def objective(points: Tensor, centroids: Tensor, weights: Tensor | None = None) -> float:
    squares = (points[:, None] - centroids).square()
    if weights is not None:
        squares = squares * weights[:, None]
    return float(squares.sum(-1).amin(1).sum())


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@some
@given(seed=SEEDS, with_metric=st.booleans())
def test_nearest_centroid_equals_enumeration(seed, with_metric):
    points, centroids = draw(seed, 30, 3), draw(seed + 1, 7, 3)
    metric = draw(seed + 2, 30, 3).square() if with_metric else None
    squares = (points[:, None] - centroids).square()
    if metric is not None:
        squares = squares * metric[:, None]
    assert torch.equal(nearest_centroid(points, centroids, metric), squares.sum(-1).argmin(1))


@some
@given(seed=SEEDS, k=st.integers(1, 6))
def test_separated_clusters_are_recovered(seed, k):
    generator = torch.Generator().manual_seed(seed)
    centers = 100 * torch.eye(k, 6, dtype=DOUBLE)
    labels = torch.randint(k, (20 * k,), generator=generator)
    labels[:k] = torch.arange(k)
    points = centers[labels] + 0.1 * draw(seed, 20 * k, 6)
    found = kmeans(points, k, generator=generator)
    means = torch.stack([points[labels == i].mean(0) for i in range(k)])
    order = torch.cdist(means, found).argmin(1)
    torch.testing.assert_close(found[order], means, rtol=1e-9, atol=1e-9)


@some
@given(seed=SEEDS, distinct=st.integers(1, 5), k=st.integers(5, 9))
def test_fewer_distinct_points_than_clusters(seed, distinct, k):
    """Every distinct point is a centroid, the others coincide with some."""
    generator = torch.Generator().manual_seed(seed)
    table = draw(seed, distinct, 2)
    points = table[torch.randint(distinct, (40,), generator=generator)]
    found = kmeans(points, k, generator=generator)
    assert found.shape == (k, 2)
    assert bool(found.isfinite().all())
    assert objective(points, found) == pytest.approx(0.0, abs=1e-20)


@some
@given(seed=SEEDS)
def test_rare_points_get_a_cluster_of_their_own(seed):
    """The seeds are drawn from few points: clusters that run empty must move to the rare ones."""
    points = torch.zeros(2000, 1, dtype=DOUBLE)
    points[[5, 800, 1900]] = torch.tensor([[1.0], [2.0], [3.0]], dtype=DOUBLE)
    found = kmeans(points, 4, generator=torch.Generator().manual_seed(seed))
    assert sorted(found.flatten().tolist()) == pytest.approx([0.0, 1.0, 2.0, 3.0], abs=1e-12)


@some
@given(seed=SEEDS, with_weights=st.booleans())
def test_converged_centroids_are_the_weighted_means_of_their_points(seed, with_weights):
    points = draw(seed, 60, 2)
    weights = draw(seed + 1, 60, 2).square() + 0.01 if with_weights else None
    found = kmeans(points, 5, weights=weights, iterations=200)
    nearest = nearest_centroid(points, found, weights)
    mass = torch.ones_like(points) if weights is None else weights
    for i in range(5):
        members = nearest == i
        if members.any():
            mean = (mass * points)[members].sum(0) / mass[members].sum(0)
            torch.testing.assert_close(found[i], mean, rtol=1e-8, atol=1e-8)


@some
@given(seed=SEEDS)
def test_more_iterations_never_hurt(seed):
    points = draw(seed, 80, 2)
    errors = [
        objective(
            points, kmeans(points, 8, generator=torch.Generator().manual_seed(1), iterations=n)
        )
        for n in (0, 1, 2, 5, 15)
    ]
    for before, after in itertools.pairwise(errors):
        assert after <= before + 1e-12


def test_weights_of_zero_make_points_invisible():
    points = torch.tensor([[0.0], [1.0], [50.0]], dtype=DOUBLE)
    weights = torch.tensor([[1.0], [1.0], [0.0]], dtype=DOUBLE)
    found = kmeans(points, 2, weights=weights)
    assert bool(found.isfinite().all())
    assert objective(points, found, weights) == pytest.approx(0.0, abs=1e-20)
    found = kmeans(points, 2, weights=torch.zeros(3, 1, dtype=DOUBLE))
    assert bool(found.isfinite().all())


def test_heavy_points_attract_centroids():
    points = torch.tensor([[0.0], [1.0]], dtype=DOUBLE)
    weights = torch.tensor([[3.0], [1.0]], dtype=DOUBLE)
    assert kmeans(points, 1, weights=weights).item() == pytest.approx(0.25)


def test_large_inputs_are_sampled_reproducibly():
    points = draw(0, 5000, 2).float()
    one, two = (
        kmeans(points, 4, max_points=200, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(one, two)
    assert one.dtype == torch.float32
    full = objective(points.double(), kmeans(points, 4).double())
    assert objective(points.double(), one.double()) < 1.3 * full


def test_kmeans_leaves_points_and_the_global_generator_alone():
    points = draw(0, 50, 2)
    before, state = points.clone(), torch.get_rng_state()
    assert torch.equal(kmeans(points, 3), kmeans(points, 3))
    assert torch.equal(points, before)
    assert torch.equal(state, torch.get_rng_state())


def test_large_codebooks_start_from_distinct_points():
    points = draw(0, 6000, 1)
    found = kmeans(points, 5000, iterations=1)
    assert found.shape == (5000, 1)
    assert len(found.unique()) > 4900


@pytest.mark.parametrize(("n", "k"), [(0, 2), (3, 0), (3, -1)])
def test_nothing_to_cluster_is_refused(n, k):
    with pytest.raises(ValueError, match=f"got {n} points and k={k}"):
        kmeans(torch.zeros(n, 2), k)


def test_rare_outliers_are_not_lost_in_the_sample():
    """Five far groups among 50000, of which a uniform sample of 2000 would hold one in five."""
    points = draw(0, 50_000, 2)
    points[::10_000] = 40 * torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1], [1, 1]], dtype=DOUBLE)
    centroids = kmeans(points, 16, max_points=2000)
    errors = (points[::10_000, None] - centroids).square().sum(-1).amin(1)
    assert errors.max() < 1
