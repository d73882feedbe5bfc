"""The groups of a stack of weights that are farthest from targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt_kernels.checks import check_integers, check_list
from pvopt_kernels.dispatch import call, implementation

from ._codebooks import check_code_values, check_stack
from .decoded_sq_norms import exact_dtype

__all__ = ["largest_changes"]


def largest_changes(
    targets: Sequence[Tensor],
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    k: int,
    *,
    out_group: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the ``k`` groups of each weight that are farthest from its target.

    .. math:: c_g = \Big\| t_g - s_g \sum_{m=1}^{M} C_m[z_{g,m}] \Big\|

    What :func:`largest` makes of the roots of :func:`decoded_sq_norms`, bit for bit, without
    keeping the norms of all groups of all weights at once.

    Args:
        targets: ``W`` tensors ``[rows * out_group, cols * g / out_group]``, floating, of any
            layout.
        codes: ``[W, rows, cols, M]`` integers in ``0 .. K - 1``.
        codebooks: ``[W, M, K, g]``, floating.
        scales: ``[W, rows, S]`` of the codebooks' dtype.
        k: how many groups, at most ``rows * cols``.
        out_group: rows of a group; divides ``g``.

    Returns:
        Their norms and numbers (int64), ``[W, k]`` each, the largest first and of equal ones the
        first; and the squared norms of the weights ``[W]``.

    Raises:
        ValueError: if numbers, shapes or devices do not fit, or ``k`` is not in range.
        TypeError: if a dtype does not.

    Example:
        >>> import torch
        >>> from pvopt_kernels import largest_changes
        >>> books = torch.tensor([[[[0.0, 0.0], [3.0, 4.0]]]])
        >>> codes = torch.tensor([[[[1], [0]]]], dtype=torch.uint8)
        >>> target = torch.tensor([[3.0, 4.0, 0.0, 2.0]])
        >>> largest_changes([target], codes, books, torch.ones(1, 1, 1), 1)
        (tensor([[2.]]), tensor([[1]]), tensor([25.]))
    """
    shape = check_stack(codes, codebooks, scales, out_group)
    targets = list(targets)
    check_list("targets", targets, len(codes), shape, codes.device)
    check_integers(k=k)
    groups = codes.shape[1] * codes.shape[2]
    if not 1 <= k <= groups:
        raise ValueError(f"k must be in 1 .. {groups}, the groups of a weight, got {k}")
    return call(_op, targets, codes, codebooks, scales, k, out_group)


@torch.library.custom_op("pvopt::largest_changes", mutates_args=())
def _op(
    targets: list[Tensor],
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    k: int,
    out_group: int,
) -> tuple[Tensor, Tensor, Tensor]:
    check_code_values(codes, codebooks)
    wide = codebooks.new_empty(0, dtype=exact_dtype(targets, codebooks))
    norms, largest = (implementation(name, wide) for name in ("decoded_sq_norms", "largest"))
    run = implementation("largest_changes", wide)
    return run(targets, codes, codebooks, scales, k, out_group, norms, largest)


@_op.register_fake
def _fake(
    targets: list[Tensor],
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    k: int,
    out_group: int,
) -> tuple[Tensor, Tensor, Tensor]:
    exact, weights = exact_dtype(targets, codebooks), codes.shape[0]
    values = codebooks.new_empty(weights, k, dtype=exact)
    places = codebooks.new_empty(weights, k, dtype=torch.int64)
    return values, places, codebooks.new_empty(weights, dtype=exact)
