"""Checks that the operations on codebooks share."""

from __future__ import annotations

from torch import Tensor

from pvopt_kernels.checks import (
    check_code_range,
    check_codes,
    check_floating,
    check_integers,
    check_same_device,
    check_shape,
    check_tensors,
)
from pvopt_kernels.reference.decode import unsigned

__all__ = ["check_code_values", "check_stack", "check_weight"]


def check_weight(
    codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[int, int]:
    """Check the parts of a weight and return its numbers of rows and columns.

    Raises:
        ValueError: if shapes or devices do not fit.
        TypeError: if a dtype does not.
    """
    check_tensors(codes=codes, codebooks=codebooks, scales=scales)
    check_shape("codes", codes, "rows", "cols", "M")
    rows, _, books = codes.shape
    check_shape("codebooks", codebooks, books, "K", "g")
    check_shape("scales", scales, rows, "S")
    return _check_parts(codes, codebooks, scales, out_group)


def check_stack(
    codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[int, int]:
    """Check the parts of a stack of weights and return rows and columns of one of them.

    Raises:
        ValueError: if shapes or devices do not fit.
        TypeError: if a dtype does not.
    """
    check_tensors(codes=codes, codebooks=codebooks, scales=scales)
    check_shape("codes", codes, "W", "rows", "cols", "M")
    weights, rows, _, books = codes.shape
    check_shape("codebooks", codebooks, weights, books, "K", "g")
    check_shape("scales", scales, weights, rows, "S")
    return _check_parts(codes, codebooks, scales, out_group)


def _check_parts(
    codes: Tensor, codebooks: Tensor, scales: Tensor, out_group: int
) -> tuple[int, int]:
    check_codes(codes=codes)
    check_integers(out_group=out_group)
    check_floating(codebooks=codebooks, scales=scales)
    if scales.dtype != codebooks.dtype:
        raise TypeError(f"scales must be {codebooks.dtype} like codebooks, got {scales.dtype}")
    check_same_device(codes=codes, codebooks=codebooks, scales=scales)
    rows, cols, books = codes.shape[-3:]
    entries, group = codebooks.shape[-2:]
    if out_group < 1 or group % out_group:
        raise ValueError(f"out_group must divide the {group} weights of a group, got {out_group}")
    if books < 1 or entries < 1:
        raise ValueError(f"codebooks must not be empty, got shape {list(codebooks.shape)}")
    row_scales = scales.shape[-1]
    if cols and (row_scales < 1 or cols % row_scales):
        raise ValueError(
            f"scales must have a number of columns that divides the {cols} groups of a row, "
            f"got {row_scales}"
        )
    return rows * out_group, cols * (group // out_group)


def check_code_values(codes: Tensor, codebooks: Tensor) -> None:
    """Refuse codes beyond the codebook (see ``check_code_range``)."""
    check_code_range("codes", codes, codebooks.shape[-2], unsigned=unsigned)
