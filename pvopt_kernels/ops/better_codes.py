"""Better codes for some groups of a stack of weights, where there are any."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt_kernels.checks import (
    check_code_range,
    check_floating,
    check_integers,
    check_same_device,
    check_shape,
    check_tensors,
)
from pvopt_kernels.dispatch import call, implementation

from ._codebooks import check_code_values, check_stack
from .decode_groups import check_numbers

__all__ = ["better_codes"]

Found = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def better_codes(
    target: Tensor,
    groups: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    *,
    beam_size: int,
    order: Sequence[int],
    out_group: int = 1,
) -> Found:
    r"""Search the codes of some groups of a stack of weights, and keep those that are no better.

    .. math:: z_g \leftarrow \arg\min_z \Big\| t_g - s_g \sum_{m=1}^{M} C_m[z_m] \Big\|^2

    by :func:`beam_search` in units of the scale; the present code stays unless the one that is
    found has a smaller error, measured on the decoded groups.

    Args:
        target: ``[n, g]`` of the codebooks' dtype.
        groups: ``[n]`` int64, their numbers as in :func:`decode_groups`.
        codes: ``[W, rows, cols, M]`` integers in ``0 .. K - 1``, the present ones.
        codebooks: ``[W, M, K, g]``, floating.
        scales: ``[W, rows, S]`` of the same dtype, with ``S`` a divisor of ``cols``.
        beam_size: combinations that the search keeps.
        order: the codebooks in the order in which it visits them, each at most once.
        out_group: rows of a group; divides ``g``.

    Returns:
        Codes ``[n, 1, M]`` int64, what they decode to ``[n, g]``, squared errors ``[n, 1]``; then
        the present codes ``[n, M]`` and what these decode to.

    Raises:
        ValueError: if numbers, shapes or devices do not fit.
        TypeError: if a dtype does not.
        IndexError: if there is no such group or code.

    Example:
        >>> import torch
        >>> from pvopt_kernels import better_codes
        >>> books = torch.tensor([[[[0.0, 0.0], [1.0, 2.0]]]])
        >>> codes = torch.tensor([[[[0], [0]]]], dtype=torch.uint8)
        >>> target, group = torch.tensor([[2.0, 3.0]]), torch.tensor([1])
        >>> stack = codes, books, torch.ones(1, 1, 1)
        >>> found = better_codes(target, group, *stack, beam_size=1, order=[0])
        >>> [tensor.tolist() for tensor in found]
        [[[[1]]], [[1.0, 2.0]], [[2.0]], [[0]], [[0.0, 0.0]]]
    """
    check_stack(codes, codebooks, scales, out_group)
    check_numbers(groups, codes)
    check_tensors(target=target)
    check_floating(target=target)
    check_shape("target", target, len(groups), codebooks.shape[3])
    if target.dtype != codebooks.dtype:
        raise TypeError(f"target must be {codebooks.dtype} like codebooks, got {target.dtype}")
    check_same_device(target=target, codes=codes)
    order, number = list(order), codes.shape[3]
    check_integers(beam_size=beam_size, **{f"order[{i}]": m for i, m in enumerate(order)})
    if beam_size < 1:
        raise ValueError(f"beam_size must be positive, got {beam_size}")
    if len(set(order)) < len(order) or not all(0 <= m < number for m in order):
        raise ValueError(
            f"order must name codebooks 0 .. {number - 1}, each at most once, got {order}"
        )
    codes = codes.contiguous()
    return call(_op, target, groups, codes, codebooks, scales, beam_size, order, out_group)


@torch.library.custom_op("pvopt::better_codes", mutates_args=())
def _op(
    target: Tensor,
    groups: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    beam_size: int,
    order: list[int],
    out_group: int,
) -> Found:
    check_code_range("groups", groups, codes[..., 0].numel())
    chosen = codes.view(-1, codes.shape[3]).index_select(0, groups)
    check_code_values(chosen, codebooks)
    per_scale = codes.shape[2] // max(1, scales.shape[2])
    run = implementation("better_codes", target)
    search, decode = (implementation(name, target) for name in ("beam_search", "decode_groups"))
    parts = target, groups, chosen, codebooks, scales, per_scale
    return run(*parts, beam_size, order, search, decode)


@_op.register_fake
def _fake(
    target: Tensor,
    groups: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    beam_size: int,
    order: list[int],
    out_group: int,
) -> Found:
    n, number = target.shape[0], codes.shape[3]
    found = codes.new_empty(n, 1, number, dtype=torch.int64)
    current = codes.new_empty(n, number, dtype=torch.int64)
    decoded, present = target.new_empty(target.shape), target.new_empty(target.shape)
    return found, decoded, target.new_empty(n, 1), current, present
