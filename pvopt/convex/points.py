"""Points of the feasible set: weights with at most c distinct entries, as codes and values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Point"]


@dataclass(frozen=True, eq=False)
class Point:
    r"""Codes and values of weights in :math:`R^d_{\le c}`; leading axes are independent runs.

    .. math:: x_i = v_{z_i}, \qquad P(x) = \{\{i : z_i = j\}\}_j, \quad V(x) = \{v_j\}

    A value that no weight uses is kept: it costs nothing (there are still at most c) and a later
    V step may pick it up.

    Args:
        codes: ``(..., d)`` integers in ``0..c-1``.
        values: ``(..., c)`` float64, with the same leading axes.

    Raises:
        TypeError: if the codes are not integers.
        ValueError: if the leading axes differ, a code is out of range or a value is not finite.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Point
        >>> point = Point(np.array([0, 1, 0]), np.array([0.5, 2.0]))
        >>> point.weights.tolist(), point.num_values
        ([0.5, 2.0, 0.5], 2)

    References:
        PV-Tuning (arXiv 2405.14852), problem description: the set of vectors with at most c
        distinct values.
    """

    codes: NDArray[np.int64]
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        codes, values = np.asarray(self.codes), np.asarray(self.values, dtype=np.float64)
        if not np.issubdtype(codes.dtype, np.integer):
            raise TypeError(f"codes must be integers, got dtype {codes.dtype}")
        if codes.ndim == 0 or values.ndim == 0 or codes.shape[:-1] != values.shape[:-1]:
            raise ValueError(
                "codes (..., d) and values (..., c) must have the same leading axes, "
                f"got {codes.shape} and {values.shape}"
            )
        if codes.size and (codes.min() < 0 or codes.max() >= values.shape[-1]):
            raise ValueError(
                f"codes must be in 0..{values.shape[-1] - 1}, got {codes.min()}..{codes.max()}"
            )
        if not np.isfinite(values).all():
            raise ValueError("values must be finite")
        object.__setattr__(self, "codes", codes.astype(np.int64, copy=False))
        object.__setattr__(self, "values", values)

    @classmethod
    def from_weights(cls, weights: ArrayLike) -> Point:
        """Return the point of one weight vector, ``(d,)``, with its distinct values sorted.

        Example:
            >>> from pvopt.convex import Point
            >>> Point.from_weights([3.0, 1.0, 3.0]).codes.tolist()
            [1, 0, 1]
        """
        values, codes = np.unique(np.asarray(weights, dtype=np.float64), return_inverse=True)
        return cls(codes.reshape(np.shape(weights)), values)

    @property
    def weights(self) -> NDArray[np.float64]:
        """The dense weights ``(..., d)``: the decoded codes."""
        return np.take_along_axis(self.values, self.codes, axis=-1)

    @property
    def num_values(self) -> int:
        """Size c of the table of values."""
        return self.values.shape[-1]

    def one_hot(self) -> NDArray[np.float64]:
        """Return the matrix E, ``(..., d, c)``, for which the weights are ``E v``."""
        return (self.codes[..., None] == np.arange(self.num_values)).astype(np.float64)

    def __getitem__(self, run: int | slice | NDArray[np.int64]) -> Point:
        """Return one run, or a selection of them, of a point with a leading axis."""
        if self.codes.ndim == 1:
            raise IndexError("a point without a leading axis holds a single run")
        return Point(self.codes[run], self.values[run])
