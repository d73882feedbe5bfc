"""Diagonal metrics above a curvature matrix, for V steps longer than 1/L allows."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["diagonal_metric"]


def diagonal_metric(
    curvature: NDArray[np.float64], *, rule: Literal["scaled", "row sums"] = "scaled"
) -> NDArray[np.float64]:
    r"""Return a diagonal D with ``D - B`` positive semidefinite.

    .. math:: \text{scaled: } D = \lambda_{\max}(C)\,\mathrm{diag}(B), \;
              C = \mathrm{diag}(B)^{-1/2} B\, \mathrm{diag}(B)^{-1/2}; \qquad
              \text{row sums: } D_{ii} = \sum_j |B_{ij}|

    A coordinate of small curvature gets a small entry, so it may move further than 1/L allows.

    Args:
        curvature: ``(d, d)`` float64 B, symmetric positive semidefinite.
        rule: ``"scaled"`` or ``"row sums"``.

    Returns:
        ``(d,)`` float64, positive.

    Raises:
        ValueError: for another rule.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import diagonal_metric
        >>> diagonal_metric(np.diag([1.0, 100.0])).tolist()
        [1.0, 100.0]

    References:
        Iterative OBS (NeurIPS 2024): curvature in the discrete step; Gershgorin's theorem.
    """
    if rule not in ("scaled", "row sums"):
        raise ValueError(f"rule must be 'scaled' or 'row sums', got {rule!r}")
    floor = np.finfo(np.float64).eps * float(
        np.trace(curvature)
    )  # a dead coordinate has no curvature
    if rule == "row sums":
        return np.maximum(np.abs(curvature).sum(1), floor)
    diagonal = np.maximum(np.diag(curvature), floor)
    root = np.sqrt(diagonal)
    correlation = curvature / np.outer(root, root)
    return float(np.linalg.eigvalsh(correlation)[-1]) * diagonal
