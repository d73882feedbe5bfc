"""Smoothness constants of a curvature matrix, whole and restricted to a coordinate subspace."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["restricted_smoothness", "smoothness"]


def smoothness(curvature: NDArray[np.float64]) -> float:
    r"""Return the largest eigenvalue of a symmetric matrix.

    .. math:: L = \lambda_{\max}(B)

    Args:
        curvature: ``(d, d)`` float64, symmetric.

    Returns:
        The smoothness constant of every function whose Hessians stay below the matrix.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import smoothness
        >>> smoothness(np.diag([1.0, 4.0]))
        4.0

    References:
        PV-Tuning (arXiv 2405.14852), the linearized V step: the upper bound of an L-smooth loss.
    """
    return float(np.linalg.eigvalsh(curvature)[-1])


def restricted_smoothness(
    curvature: NDArray[np.float64], subspace: NDArray[np.int64]
) -> NDArray[np.float64]:
    r"""Return the smoothness constant along the coordinates of a subspace.

    .. math:: L_S = \lambda_{\max}(B_{SS}) \le L, \qquad S \subseteq T \implies L_S \le L_T

    Args:
        curvature: ``(d, d)`` float64, symmetric.
        subspace: ``(..., m)`` int64, distinct coordinates per run; ``m >= 1``.

    Returns:
        ``(...)`` float64, one constant per run.

    Raises:
        ValueError: if a subspace is empty or names a coordinate outside ``0..d-1``.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import restricted_smoothness
        >>> restricted_smoothness(np.diag([1.0, 4.0, 9.0]), np.array([[0, 1], [1, 2]])).tolist()
        [4.0, 9.0]

    References:
        PV-Tuning (arXiv 2405.14852), the linearized subspace V step.
    """
    subspace = np.asarray(subspace)
    d = len(curvature)
    if subspace.ndim == 0 or subspace.shape[-1] == 0:
        raise ValueError("subspace must hold at least one coordinate")
    if subspace.size and (subspace.min() < 0 or subspace.max() >= d):
        raise ValueError(f"subspace must hold coordinates in 0..{d - 1}, got {subspace.tolist()}")
    block = curvature[subspace[..., :, None], subspace[..., None, :]]
    if subspace.shape[-1] == 1:  # the single entry is the eigenvalue
        return block[..., 0, 0]
    return np.asarray(np.linalg.eigvalsh(block)[..., -1], dtype=np.float64)
