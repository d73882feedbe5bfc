"""Squared norms of the groups between targets and a stack of weights, and of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt_kernels.checks import check_list
from pvopt_kernels.dispatch import call, implementation

from ._codebooks import check_code_values, check_stack

__all__ = ["decoded_sq_norms", "exact_dtype"]


def decoded_sq_norms(
    targets: Sequence[Tensor],
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    *,
    out_group: int = 1,
) -> tuple[Tensor, Tensor]:
    r"""Return how far the groups of a stack of weights are from targets, and the weights' norms.

    .. math:: c_g = \Big\| t_g - s_g \sum_{m=1}^{M} C_m[z_{g,m}] \Big\|^2, \qquad
        n_w = \sum_{g \in w} \Big\| s_g \sum_{m=1}^{M} C_m[z_{g,m}] \Big\|^2

    The weights are decoded on the way and never written. The result does not depend on the number
    of threads, nor on what else is in the stack.

    Args:
        targets: ``W`` tensors ``[rows * out_group, cols * g / out_group]``, floating, of any
            layout.
        codes: ``[W, rows, cols, M]`` integers in ``0 .. K - 1``.
        codebooks: ``[W, M, K, g]``, floating.
        scales: ``[W, rows, S]`` of the codebooks' dtype.
        out_group: rows of a group; divides ``g``.

    Returns:
        Squared norms of the differences ``[W, rows * cols]`` and of the decoded weights ``[W]``, in
        the widest of the dtypes and float32.

    Raises:
        ValueError: if numbers, shapes or devices do not fit.
        TypeError: if a dtype does not.

    Example:
        >>> import torch
        >>> from pvopt_kernels import decoded_sq_norms
        >>> books = torch.tensor([[[[0.0, 0.0], [3.0, 4.0]]]])
        >>> codes = torch.tensor([[[[1], [0]]]], dtype=torch.uint8)
        >>> target = torch.tensor([[3.0, 4.0, 1.0, 1.0]])
        >>> decoded_sq_norms([target], codes, books, torch.ones(1, 1, 1))
        (tensor([[0., 2.]]), tensor([25.]))
    """
    shape = check_stack(codes, codebooks, scales, out_group)
    targets = list(targets)
    check_list("targets", targets, len(codes), shape, codes.device)
    return call(_op, targets, codes, codebooks, scales, out_group)


@torch.library.custom_op("pvopt::decoded_sq_norms", mutates_args=())
def _op(
    targets: list[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    check_code_values(codes, codebooks)
    wide = codebooks.new_empty(0, dtype=exact_dtype(targets, codebooks))
    run = implementation("decoded_sq_norms", wide)
    return run(targets, codes, codebooks, scales, out_group)


@_op.register_fake
def _fake(
    targets: list[Tensor], codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[Tensor, Tensor]:
    exact = exact_dtype(targets, codebooks)
    weights, rows, cols, _ = codes.shape
    changes = codebooks.new_empty(weights, rows * cols, dtype=exact)
    return changes, codebooks.new_empty(weights, dtype=exact)


def exact_dtype(targets: list[Tensor], codebooks: Tensor) -> torch.dtype:
    """Return the widest of the dtypes and float32."""
    wide = codebooks.dtype == torch.float64 or any(t.dtype == torch.float64 for t in targets)
    return torch.float64 if wide else torch.float32
