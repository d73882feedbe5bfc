"""Tensors copied into others that are not read soon."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pvopt_kernels.checks import (
    FLOATING,
    check_floating,
    check_same_device,
    check_shape,
    check_tensors,
)
from pvopt_kernels.dispatch import call, implementation

from ._written import mark_written

__all__ = ["copy_into"]


def copy_into(outs: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors into others, rounded to their dtypes.

    What ``torch._foreach_copy_`` does; on a CPU large float32 tensors are written past the caches,
    which otherwise read what is overwritten first.

    Args:
        outs: floating, of any layouts; no two may share memory.
        sources: floating tensors of the same shapes.

    Raises:
        ValueError: if numbers, shapes or devices do not fit.
        TypeError: if a dtype does not.

    Example:
        >>> import torch
        >>> from pvopt_kernels import copy_into
        >>> out = torch.zeros(2)
        >>> copy_into([out], [torch.ones(2)])
        >>> out
        tensor([1., 1.])
    """
    outs, sources = list(outs), list(sources)
    if len(outs) != len(sources):
        raise ValueError(
            f"sources must be {len(outs)} tensors, as many as outs, got {len(sources)}"
        )
    for i, pair in enumerate(zip(outs, sources, strict=True)):
        if _fits(*pair, outs[0]):
            continue  # names are put together where they are needed: there are hundreds of pairs
        named = {f"outs[{i}]": pair[0], f"sources[{i}]": pair[1]}
        check_tensors(**named)
        check_floating(**named)
        check_shape(f"sources[{i}]", pair[1], *pair[0].shape)
        check_same_device(**{"outs[0]": outs[0], **named})
    if outs:
        call(_op, outs, sources)


def _fits(out: object, source: object, first: object) -> bool:
    """Whether nothing is wrong with a pair."""
    if not (isinstance(out, Tensor) and isinstance(source, Tensor) and isinstance(first, Tensor)):
        return False
    known = out.dtype in FLOATING and source.dtype in FLOATING
    return known and out.shape == source.shape and out.device == source.device == first.device


@torch.library.custom_op("pvopt::copy_into", mutates_args={"outs"})
def _op(outs: list[Tensor], sources: list[Tensor]) -> None:
    implementation("copy_into", outs[0])(outs, sources)
    mark_written(outs)


@_op.register_fake
def _fake(outs: list[Tensor], sources: list[Tensor]) -> None:
    return None
