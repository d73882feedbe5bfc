"""k-means of scalars: nearly the least squared error, over all points."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["nearest_scalar", "scalar_kmeans"]

# Bins that the global search cuts between; a matrix of their squared is 8 MiB.
_BINS = 1024
# Where there are more centroids, local search from a good start is as near to the least error.
_MOST = 256
# Points that are sorted at once, a quarter of a gigabyte; of more, a random choice.
_SORTED = 1 << 26
# Passes over all points after that, and points of a pass at once.
_PASSES, _AT_ONCE = 8, 1 << 22


def nearest_scalar(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the number of the nearest centroid of each point, the lower one of two.

    Args:
        points: ``[n]``.
        centroids: ``[k]``, ascending.

    Returns:
        ``[n]`` int64.

    Example:
        >>> import torch
        >>> from pvopt.fits import nearest_scalar
        >>> nearest_scalar(torch.tensor([0.4, 0.9]), torch.tensor([0.0, 1.0]))
        tensor([0, 1])
    """
    return torch.bucketize(points, _middles(centroids))


def _middles(centroids: Tensor) -> Tensor:
    return centroids[:-1] + (centroids[1:] - centroids[:-1]) / 2


def scalar_kmeans(
    points: Tensor,
    k: int,
    *,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
    iterations: int = 300,
) -> Tensor:
    r"""Cluster scalars.

    .. math:: \min_c \sum_n \omega_n \min_j (x_n - c_j)^2

    Clusters of scalars are intervals. Dynamic programming finds the best of all intervals that end
    at 1024 places of the sorted points; Lloyd's iteration then moves the ends between all points,
    each pass by binary search in sums over the sorted points. With more than 256 centroids it
    starts where the points' density to the power of one third puts equal shares, which is best
    for many.

    Args:
        points: ``[n]``, floating.
        k: number of centroids; with fewer distinct points some coincide.
        weights: ``[n]`` non-negative, or None for 1.
        generator: of the choice among more than 2^26 points; None seeds a fresh one with 0.
        iterations: at most so many of Lloyd's.

    Returns:
        ``[k]`` centroids, ascending, in the points' dtype.

    Raises:
        ValueError: if there are no points or ``k`` is not positive.

    Example:
        >>> import torch
        >>> from pvopt.fits import scalar_kmeans
        >>> scalar_kmeans(torch.tensor([0.0, 5.0, 0.25]), 2)
        tensor([0.1250, 5.0000])

    References:
        Wang & Song, "Ckmeans.1d.dp" (2011); Panter & Dite, "Quantization distortion" (1951).
    """
    if len(points) == 0 or k < 1:
        raise ValueError(f"kmeans needs points and k >= 1, got {len(points)} points and k={k}")
    dtype, everything = points.dtype, (points, weights)
    points, weights = _choice(points, weights, generator)
    points, weights = _sorted(points, weights)
    center = points[len(points) // 2].double()
    sums = _Sums(points, center, weights)
    starts = [_companded(points, k)]
    if k <= _MOST:
        starts.append(_cut(points, sums, starts[0]))
    found = [_lloyd(points, sums, start - center, iterations) for start in starts]
    best = max(found, key=lambda centroids: sums.gain(_ends(points, sums, centroids)))
    best = best + center
    if len(everything[0]) > len(points):  # the tails are not what was chosen
        for _ in range(_PASSES):
            best = _means(*everything, best)
    return best.to(dtype)


def _means(points: Tensor, weights: Tensor | None, centroids: Tensor) -> Tensor:
    """Return the means of the points that are nearest to each centroid, float64, ascending."""
    mass, first = torch.zeros_like(centroids), torch.zeros_like(centroids)
    for start in range(0, len(points), _AT_ONCE):
        part = points[start : start + _AT_ONCE].double()
        own = torch.ones_like(part) if weights is None else weights[start : start + _AT_ONCE]
        index, own = nearest_scalar(part, centroids), own.double()
        mass += torch.bincount(index, own, len(centroids))
        first += torch.bincount(index, own * part, len(centroids))
    return torch.where(mass > 0, first / mass, centroids).sort().values


def _ends(points: Tensor, sums: _Sums, centroids: Tensor) -> Tensor:
    """Return where the points of one centroid end and those of the next begin, ``[k - 1]``."""
    return torch.searchsorted(points, (_middles(centroids) + sums.center).to(points), right=True)


def _lloyd(points: Tensor, sums: _Sums, centroids: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        updated = torch.where(*sums.means(_ends(points, sums, centroids), centroids))
        if torch.equal(updated, centroids):
            break
        centroids = updated.sort().values
    return centroids


def _choice(
    points: Tensor, weights: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor | None]:
    """Return the points, or some of them chosen at random where there are too many to sort."""
    if len(points) <= _SORTED:
        return points, weights
    if generator is None:
        generator = torch.Generator(points.device).manual_seed(0)
    chosen = torch.randint(
        len(points), (_SORTED,), generator=generator, device=points.device, dtype=torch.int64
    )
    chosen[:2] = torch.stack([points.argmin(), points.argmax()])
    return points[chosen], None if weights is None else weights[chosen]


def _sorted(points: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the points in ascending order, and their weights; None where all weigh nothing."""
    if weights is not None and bool((weights > 0).any()):
        points, order = points.sort()
        return points, weights[order]
    if points.device.type != "cpu":
        return points.sort().values, None
    # Without an order to return: 2 s for 3e7 points, where torch takes 15 s.
    return torch.from_numpy(np.sort(points.detach().numpy())), None


class _Sums:
    """Sums over runs of the sorted points, in float64, around a center.

    Args:
        points: ``[n]`` ascending.
        center: what is subtracted from each.
        weights: ``[n]`` or None.
    """

    def __init__(self, points: Tensor, center: Tensor, weights: Tensor | None) -> None:
        self.center, self.count = center, len(points)
        moved = points.double() - center
        self.mass = None if weights is None else _running(weights.double())
        self.first = _running(moved if weights is None else moved * weights)

    def of(self, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Return masses and first moments of the runs between ends, ``[k]`` each.

        Args:
            ends: ``[k - 1]`` ascending places where one run ends and the next begins.
        """
        ends = torch.nn.functional.pad(ends, (1, 0))
        ends = torch.nn.functional.pad(ends, (0, 1), value=self.count)
        mass = ends if self.mass is None else self.mass[ends]
        return mass.diff().double(), self.first[ends].diff()

    def means(self, ends: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where runs have mass, their means, and what to take where they have none."""
        mass, first = self.of(ends)
        return mass > 0, first / mass, centroids

    def gain(self, ends: Tensor) -> float:
        """Return what the means lower the squared error by, against the center for all points."""
        mass, first = self.of(ends)
        return float(torch.where(mass > 0, first.square() / mass, 0.0).sum())


def _running(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values.cumsum(0), (1, 0))


def _cut(points: Tensor, sums: _Sums, companded: Tensor) -> Tensor:
    """Return the means of the best runs ``[k]`` that end at some of 1024 places."""
    n, k = len(points), len(companded)
    # Equal shares of the points for the bulk, equal distances for the tails, and in between.
    some = _BINS // 4
    shares = points[
        torch.linspace(0, n - 1, some, dtype=torch.float64, device=points.device).long()
    ]
    low, high = points[0].double(), points[-1].double()
    part = torch.linspace(0, 1, some, dtype=torch.float64, device=points.device)
    between = torch.cat([shares.double(), low + (high - low) * part, _companded(points, 2 * some)])
    inside = torch.searchsorted(points, between.to(points)).unique()  # never between equal points
    inside = inside[(inside > 0) & (inside < n)]
    ends = torch.cat([inside.new_zeros(1), inside, inside.new_tensor([n])])
    first = sums.first[ends]
    mass = (ends if sums.mass is None else sums.mass[ends]).double()
    # The error of a run is sum w x^2 - (sum w x)^2 / sum w; the first term is the same for all.
    total, weight = first[:, None] - first, mass[:, None] - mass  # [last end, first end]
    gain = torch.where(weight > 0, total.square() / weight, 0.0)
    gain.masked_fill_(ends[:, None] < ends, -torch.inf)
    best, back = gain[:, 0], []
    for _ in range(k - 1):
        best, choice = (best + gain).max(1)
        back.append(choice)
    cuts = [len(ends) - 1]
    for choice in reversed(back):
        cuts.append(int(choice[cuts[-1]]))
    edges = ends[torch.tensor(cuts[:0:-1], dtype=torch.int64, device=ends.device)]
    has, means, other = sums.means(edges, companded)
    return torch.where(has, means + sums.center, other).sort().values


def _companded(points: Tensor, k: int) -> Tensor:
    """Return quantiles of the points' density to the power of one third."""
    n = len(points)
    count = min(n, 1 << 16)
    places = torch.linspace(0, n - 1, count, dtype=torch.float64, device=points.device).long()
    some = points[places].double()
    widths = some.diff()
    # A run of equal shares and width d has density 1 / d, and so weight d^(2/3).
    shares = _running(widths.pow(2 / 3))
    if not bool(shares[-1] > 0):
        return some[:1].expand(k).clone()
    wanted = shares[-1] * (torch.arange(k, dtype=torch.float64, device=points.device) + 0.5) / k
    right = torch.searchsorted(shares, wanted).clamp_(1, max(1, count - 1))
    part = (wanted - shares[right - 1]) / (shares[right] - shares[right - 1]).clamp_min(1e-300)
    return some[right - 1] + part.clamp_(0, 1) * widths[right - 1]
