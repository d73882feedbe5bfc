"""Partitions of the coordinates: order, enumeration, and the global optimum over all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .p_step import ExactP
from .points import Point
from .problems import Problem

__all__ = ["GlobalOptimum", "contains", "global_optimum", "set_partitions"]

_CHUNK = 4096  # partitions refitted at once: bounds the memory, d * c * chunk doubles


def contains(coarse: NDArray[np.int64], fine: NDArray[np.int64]) -> bool:
    r"""Return whether one partition merges blocks of another and splits none.

    .. math:: P(y) \supseteq P(x) \iff (x_i = x_j \implies y_i = y_j)

    Args:
        coarse: ``(d,)`` codes (or weights) of y.
        fine: ``(d,)`` codes (or weights) of x.

    Returns:
        True if every block of ``fine`` lies in one block of ``coarse``.

    Raises:
        ValueError: if the arguments are not two vectors of one length.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import contains
        >>> contains(np.array([0, 0, 1]), np.array([5, 3, 4]))
        True
        >>> contains(np.array([0, 1, 1]), np.array([5, 5, 4]))
        False

    References:
        PV-Tuning (arXiv 2405.14852), problem description: the relation between partitions.
    """
    coarse, fine = np.asarray(coarse), np.asarray(fine)
    if coarse.ndim != 1 or coarse.shape != fine.shape:
        raise ValueError(
            f"coarse and fine must be vectors of one length, got {coarse.shape} and {fine.shape}"
        )
    together = fine[:, None] == fine
    return bool((coarse[:, None] == coarse)[together].all())


def set_partitions(dimension: int, max_blocks: int, *, limit: int = 200_000) -> NDArray[np.int64]:
    """Return every partition of the coordinates into at most ``max_blocks`` blocks.

    Each row is a restricted growth string: a code is at most one above all codes before it, which
    names every partition exactly once.

    Args:
        dimension: number of coordinates d.
        max_blocks: largest number of blocks c.
        limit: refuse to build more rows than this (all partitions of 10 coordinates are 115975).

    Returns:
        ``(n, d)`` int64 codes.

    Raises:
        ValueError: for a size below 1, or if there are more than ``limit`` partitions.

    Example:
        >>> from pvopt.convex import set_partitions
        >>> set_partitions(3, 2).tolist()
        [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]

    References:
        PV-Tuning (arXiv 2405.14852), problem description: the discrete half of the problem.
    """
    if dimension < 1 or max_blocks < 1:
        raise ValueError(
            f"dimension and max_blocks must be at least 1, got {dimension} and {max_blocks}"
        )
    rows = np.zeros((1, 1), dtype=np.int64)
    for _ in range(dimension - 1):
        children = np.minimum(rows.max(1) + 2, max_blocks)  # codes in use, and one new block
        if children.sum() > limit:
            raise ValueError(
                f"the partitions of {dimension} coordinates into at most {max_blocks} blocks "
                f"exceed the limit of {limit}; choose a smaller dimension or raise the limit"
            )
        first = np.repeat(np.cumsum(children) - children, children)
        code = np.arange(children.sum()) - first
        rows = np.column_stack([np.repeat(rows, children, axis=0), code])
    return rows


@dataclass(frozen=True)
class GlobalOptimum:
    r"""The best point of :math:`R^d_{\le c}`: its codes and values, and its objective."""

    point: Point
    objective: float


def global_optimum(problem: Problem, num_values: int, *, limit: int = 200_000) -> GlobalOptimum:
    r"""Return the global optimum over every partition, by enumeration.

    .. math:: \min_{x \in R^d_{\le c}} \phi(x) = \min_{P} \min_{y : P(y) \supseteq P} \phi(y)

    Args:
        problem: the objective; up to about 10 weights.
        num_values: number of values c.
        limit: refuse to visit more partitions than this.

    Returns:
        The best partition with its exact P step.

    Raises:
        ValueError: if there are more than ``limit`` partitions.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Quadratic, global_optimum
        >>> problem = Quadratic(np.eye(3), np.array([1.0, 5.0, 1.2]))
        >>> global_optimum(problem, 2).point.codes.tolist()
        [0, 1, 0]

    References:
        PV-Tuning (arXiv 2405.14852), problem description.
    """
    best: GlobalOptimum | None = None
    rows = set_partitions(problem.dimension, num_values, limit=limit)
    for start in range(0, len(rows), _CHUNK):
        codes = rows[start : start + _CHUNK]
        fitted = ExactP().step(problem, Point(codes, np.zeros((len(codes), num_values))))
        objective = problem.value(fitted.weights)
        found = int(objective.argmin())
        if best is None or objective[found] < best.objective:
            best = GlobalOptimum(fitted[found], float(objective[found]))
    assert best is not None  # there is at least the partition into one block
    return best
