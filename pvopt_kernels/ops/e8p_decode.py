"""Points of QuIP#'s E8P codebook."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt_kernels.checks import check_code_range, check_codes, check_tensors
from pvopt_kernels.dispatch import implementation

__all__ = ["e8p_decode"]


def e8p_decode(codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""Return the points of E8P that codes stand for.

    .. math:: x = s \circ a + c, \qquad a \in \text{256 absolute vectors}, \quad
        s \in \{\pm1\}^8, \quad c = \pm\tfrac14, \quad \textstyle\prod_i s_i = (-1)^{\sum_i a_i}

    Args:
        codes: ``[..., 2]`` integers in 0..255: the number of ``a``; then bits 0 to 6, set where
            the sign of that place is minus, and bit 7, set where the shift is ``+1/4``.
        dtype: of the result.

    Returns:
        ``[..., 8]``

    Example:
        >>> import torch
        >>> from pvopt_kernels import e8p_decode
        >>> e8p_decode(torch.tensor([[0, 0], [0, 129]])).tolist()[1]  # two signs are minus
        [-0.25, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, -0.25]

    References:
        QuIP# (arXiv 2402.04396), section 4.2.
    """
    check_tensors(codes=codes)
    check_codes(codes=codes)
    if codes.dim() < 1 or codes.shape[-1] != 2:
        raise ValueError(f"codes must have shape [..., 2], got {list(codes.shape)}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating, got {dtype}")
    return _op(codes, dtype)


@torch.library.custom_op("pvopt::e8p_decode", mutates_args=())
def _op(codes: Tensor, dtype: torch.dtype) -> Tensor:
    check_code_range("codes", codes, 256)
    # The dtype asked for decides together with the codes' device.
    run = implementation("e8p_decode", torch.empty(0, dtype=dtype, device=codes.device))
    return run(codes, dtype)


@_op.register_fake
def _fake(codes: Tensor, dtype: torch.dtype) -> Tensor:
    return codes.new_empty((*codes.shape[:-1], 8), dtype=dtype)
