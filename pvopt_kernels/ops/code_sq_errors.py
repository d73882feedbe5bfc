"""Squared distances of decoded groups to their targets."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import (
    check_code_range,
    check_codes,
    check_floating,
    check_same_device,
    check_shape,
)
from pvopt_kernels.dispatch import implementation

__all__ = ["code_sq_errors"]


def code_sq_errors(target: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor) -> Tensor:
    r"""Return how far each group of additive codes is from a target, without the decoded weight.

    .. math:: e_g = \sum_i \Big(t_{gi} - s_{\lfloor g S / G \rfloor}
        \sum_m C_m[z_{gm}]_i\Big)^2

    Args:
        target: ``[G, g]``, floating.
        codes: ``[G, M]``.
        codebooks: ``[M, K, g]``, floating.
        scales: ``[S]``, floating; each belongs to ``G / S`` groups in a row.

    Returns:
        ``[G]``, in the widest of the dtypes and float32.

    Raises:
        ValueError: if shapes or devices do not fit.
        TypeError: if a dtype does not.

    Example:
        >>> books = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
        >>> codes = torch.tensor([[1], [0]])
        >>> code_sq_errors(torch.ones(2, 2), codes, books, torch.tensor([3.0]))
        tensor([8., 2.])
    """
    check_floating(target=target, codebooks=codebooks, scales=scales)
    check_codes(codes=codes)
    check_shape("target", target, "G", "g")
    check_shape("codebooks", codebooks, "M", "K", target.shape[1])
    check_shape("codes", codes, target.shape[0], codebooks.shape[0])
    check_shape("scales", scales, "S")
    check_same_device(target=target, codes=codes, codebooks=codebooks, scales=scales)
    if target.shape[0] % max(1, scales.shape[0]):
        raise ValueError(
            f"scales must divide the {target.shape[0]} groups evenly, got {scales.shape[0]}"
        )
    return _op(target, codes, codebooks, scales)


@torch.library.custom_op("pvopt::code_sq_errors", mutates_args=())
def _op(target: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor) -> Tensor:
    check_code_range("codes", codes, codebooks.shape[1])
    wide = max((target, codebooks, scales), key=lambda tensor: tensor.dtype.itemsize)
    return implementation("code_sq_errors", wide)(target, codes, codebooks, scales)


@_op.register_fake
def _fake(target: Tensor, codes: Tensor, codebooks: Tensor, scales: Tensor) -> Tensor:
    exact = torch.promote_types(torch.promote_types(target.dtype, codebooks.dtype), scales.dtype)
    exact = torch.promote_types(exact, torch.float32)
    return target.new_empty(target.shape[0], dtype=exact)
