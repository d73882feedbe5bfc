"""The largest entries of each row."""

from __future__ import annotations

from torch import Tensor

__all__ = ["largest"]


def largest(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return values and indices, ``[n, k]`` each; see :func:`pvopt_kernels.largest`."""
    # A stable sort is what torch has for ties in order; NaN is not larger than anything.
    order = (-keys).sort(dim=1, stable=True).indices[:, :k].contiguous()
    return keys.gather(1, order), order
