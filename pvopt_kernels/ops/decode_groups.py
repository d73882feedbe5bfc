"""Some groups of a stack of codes, codebooks and scales, decoded."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import (
    check_code_range,
    check_codes,
    check_same_device,
    check_shape,
    check_tensors,
)
from pvopt_kernels.dispatch import call, implementation

from ._codebooks import check_code_values, check_stack

__all__ = ["check_numbers", "decode_groups"]


def decode_groups(
    groups: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    *,
    out_group: int = 1,
    new_codes: Tensor | None = None,
) -> Tensor:
    r"""Return some groups of the weights that a stack of codes, codebooks and scales stands for.

    .. math:: w_g = s_g \sum_{m=1}^{M} C_m[z_{g,m}]

    Group ``g`` of weight ``w`` has the number ``w * rows * cols + g``. The result has the bits of
    :func:`decode_into`.

    Args:
        groups: ``[n]`` int64, numbers of groups: equally many of each weight, weight after weight.
        codes: ``[W, rows, cols, M]`` integers in ``0 .. K - 1``; int8 and int16 are read as
            unsigned.
        codebooks: ``[W, M, K, g]``, floating.
        scales: ``[W, rows, S]`` of the same dtype, with ``S`` a divisor of ``cols``.
        out_group: rows of a group; divides ``g``.
        new_codes: ``[n, M]`` int64 to decode in place of the groups' own.

    Returns:
        ``[n, g]`` in the codebooks' dtype.

    Raises:
        ValueError: if numbers, shapes or devices do not fit.
        TypeError: if a dtype does not.
        IndexError: if there is no such group or code.

    Example:
        >>> import torch
        >>> from pvopt_kernels import decode_groups
        >>> books = torch.tensor([[[[0.0, 0.0], [1.0, 2.0]]]])
        >>> codes = torch.tensor([[[[1], [0]]]], dtype=torch.uint8)
        >>> decode_groups(torch.tensor([0]), codes, books, torch.tensor([[[0.5]]]))
        tensor([[0.5000, 1.0000]])
    """
    check_stack(codes, codebooks, scales, out_group)
    codes = codes.contiguous()
    check_numbers(groups, codes)
    if new_codes is not None:
        check_codes(new_codes=new_codes)
        check_shape("new_codes", new_codes, len(groups), codes.shape[3])
        if new_codes.dtype != torch.int64:
            raise TypeError(f"new_codes must be int64, got {new_codes.dtype}")
        check_same_device(new_codes=new_codes, codes=codes)
    return call(_op, groups, codes, codebooks, scales, out_group, new_codes)


def check_numbers(groups: Tensor, codes: Tensor) -> None:
    """Check numbers of groups of a stack, equally many of each weight.

    Raises:
        ValueError: if shapes or devices do not fit.
        TypeError: if the numbers are not int64.
    """
    check_tensors(groups=groups)
    check_shape("groups", groups, "n")
    if groups.dtype != torch.int64:
        raise TypeError(f"groups must be int64, got {groups.dtype}")
    check_same_device(groups=groups, codes=codes)
    if len(groups) % max(1, len(codes)):
        raise ValueError(
            f"groups must be as many for each of the {len(codes)} weights, got {len(groups)}"
        )


@torch.library.custom_op("pvopt::decode_groups", mutates_args=())
def _op(
    groups: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    out_group: int,
    new_codes: Tensor | None,
) -> Tensor:
    check_code_range("groups", groups, codes[..., 0].numel())
    if new_codes is None:
        chosen = codes.view(-1, codes.shape[3]).index_select(0, groups)
        check_code_values(chosen, codebooks)
    else:
        chosen = new_codes
        check_code_range("new_codes", chosen, codebooks.shape[2])
    per_scale = codes.shape[2] // max(1, scales.shape[2])
    run = implementation("decode_groups", codebooks)
    return run(groups, chosen, codebooks, scales, per_scale)


@_op.register_fake
def _fake(
    groups: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scales: Tensor,
    out_group: int,
    new_codes: Tensor | None,
) -> Tensor:
    return codebooks.new_empty(groups.shape[0], codebooks.shape[3])
