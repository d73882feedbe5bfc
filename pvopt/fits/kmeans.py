"""Weighted k-means, the data-free start of every codebook."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.ops import beam_search, sum_by_code

__all__ = ["kmeans", "nearest_centroid"]


def nearest_centroid(points: Tensor, centroids: Tensor, metric: Tensor | None = None) -> Tensor:
    """Return the number of the nearest centroid of each point.

    Args:
        points: ``[n, g]``.
        centroids: ``[K, g]``.
        metric: ``[n, g]`` non-negative weights of the squared differences, or None for 1.

    Returns:
        ``[n]`` int64.

    Example:
        >>> import torch
        >>> from pvopt.fits import nearest_centroid
        >>> nearest_centroid(torch.tensor([[0.4], [0.9]]), torch.tensor([[0.0], [1.0]]))
        tensor([0, 1])
    """
    start = torch.zeros(len(points), 1, dtype=torch.int64, device=points.device)
    found = beam_search(points, centroids[None], start, 1, beam_size=1, order=[0], metric=metric)
    return found[:, 0, 0]


def kmeans(
    points: Tensor,
    k: int,
    *,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
    iterations: int = 10,
    max_points: int = 16384,
) -> Tensor:
    r"""Cluster points by Lloyd's iteration from a k-means++ start.

    .. math:: \min_C \sum_n \min_k \sum_i \omega_{ni} (x_{ni} - C_{ki})^2

    Large inputs are clustered on a sample that holds the points of largest norm; a cluster that
    runs empty is moved to the worst-represented point.

    Args:
        points: ``[n, g]``, float32 or float64.
        k: number of centroids; with fewer distinct points some centroids coincide.
        weights: ``[n, g]`` non-negative weights, or None for 1.
        generator: source of random draws; None seeds a fresh one with 0.
        iterations: Lloyd iterations.
        max_points: size of the sample (at least ``4 k`` points are taken).

    Returns:
        ``[k, g]`` centroids.

    Raises:
        ValueError: if there are no points or ``k`` is not positive.

    Example:
        >>> import torch
        >>> from pvopt.fits import kmeans
        >>> centroids = kmeans(torch.tensor([[0.0], [0.1], [5.0]]), 2)
        >>> centroids.sort(0).values.flatten().tolist()
        [0.05000000074505806, 5.0]

    References:
        Arthur & Vassilvitskii, "k-means++: The Advantages of Careful Seeding" (2007).
    """
    if len(points) == 0 or k < 1:
        raise ValueError(f"kmeans needs points and k >= 1, got {len(points)} points and k={k}")
    if generator is None:
        generator = torch.Generator(points.device).manual_seed(0)
    points, weights = _sample(points, weights, max(max_points, 4 * k), generator)
    centroids = _seed(points, k, weights, generator)
    ones = torch.ones_like(points[:, :1]) if weights is None else weights
    weighted = points if weights is None else points * weights
    for _ in range(iterations):
        nearest = nearest_centroid(points, centroids, weights)
        mass = sum_by_code(ones, nearest, k)  # [k, 1 or g]
        means = sum_by_code(weighted, nearest, k) / mass
        updated = torch.where(mass > 0, means, centroids)
        empty = (torch.bincount(nearest, minlength=k) == 0).nonzero()[:, 0]
        if len(empty):
            errors = (points - updated[nearest]).square().sum(1)
            worst = errors.topk(min(len(empty), len(points)))
            moved = worst.indices[worst.values > 0]
            updated[empty[: len(moved)]] = points[moved]
        if torch.equal(updated, centroids):
            break
        centroids = updated
    return centroids


def _sample(
    points: Tensor, weights: Tensor | None, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Return at most ``count`` points: those of largest norm, and a random choice of the others.

    A language model hangs on a few outlying weights. A uniform sample misses most of their groups,
    and the codebook then has no entry near them: two starts of SmolLM2 from uniform samples, with
    squared errors 3 % apart, had perplexities of 1.3e5 and 2.4e5 and were tuned to 75 and 123 in
    48 steps; with the largest norms in the sample it was 5.1e4 and 62.
    """
    if len(points) <= count:
        return points, weights
    keys = torch.rand(len(points), generator=generator, device=points.device)
    squares = points.square() if weights is None else points.square() * weights
    keys[squares.sum(1).topk(count // 8).indices] = 2.0
    chosen = keys.topk(count).indices
    return points[chosen], None if weights is None else weights[chosen]


def _seed(points: Tensor, k: int, weights: Tensor | None, generator: torch.Generator) -> Tensor:
    """Draw k-means++ seeds, from at most ``16 k`` points: more do not help and cost O(n k)."""
    points, mass = _sample(points, weights, 16 * k, generator)
    if k > 4096:  # O(k^2) from here on: uniform seeds, with repetition only if points run out
        order = torch.randperm(len(points), generator=generator, device=points.device)
        return points[order[torch.arange(k, device=points.device) % len(points)]]
    distance = points.new_ones(len(points)) if mass is None else mass.sum(1)
    seeds = points.new_empty(k, points.shape[1])
    for j in range(k):
        # Exponential races: argmin E_n / p_n draws n with probability proportional to p_n.
        race = torch.empty_like(distance).exponential_(generator=generator)
        pick = (race / distance).argmin()  # a point at distance 0 has infinite time
        seeds[j] = points[pick]
        gap = (points - seeds[j]).square_()
        gap = (gap if mass is None else gap.mul_(mass)).sum(1)
        distance = gap if j == 0 else torch.minimum(distance, gap)
    return seeds
