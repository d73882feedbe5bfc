"""The rotation of incoherent weights, applied to activations."""

from __future__ import annotations

import torch
from torch import Tensor

from pvopt.spaces.rotation import random_signs
from pvopt.spaces.orthogonal import transform

__all__ = ["rotate"]


# An operation of its own: torch.compile cannot look into the tables that NumPy makes.
@torch.library.custom_op("pvopt::rotate", mutates_args=())
def rotate(x: Tensor, seed: int, side: int, back: bool) -> Tensor:
    r"""Rotate the last axis by random signs and a symmetric orthogonal matrix.

    .. math:: y = x\,\mathrm{diag}(s)\,H, \qquad \text{back: } y = x\,H\,\mathrm{diag}(s)

    Args:
        x: ``[..., n]`` floating.
        seed: of the signs, as of :class:`pvopt.Incoherent`.
        side: 0 for the signs of a weight's rows, 1 for those of its columns.
        back: which of the two; each is the inverse and the adjoint of the other.

    Returns:
        ``[..., n]`` of the same dtype, computed in at least float32.

    Example:
        >>> x = torch.randn(3, 12)
        >>> torch.allclose(rotate(rotate(x, 7, 0, False), 7, 0, True), x, atol=1e-5)
        True
    """
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    signs = random_signs(seed, side, x.shape[-1]).to(exact)
    rotated = transform(exact) * signs if back else transform(exact * signs)
    return rotated.to(x.dtype)


@rotate.register_fake
def _fake(x: Tensor, seed: int, side: int, back: bool) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx, inputs: tuple, output: Tensor) -> None:
    _, ctx.seed, ctx.side, ctx.back = inputs


def _backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return rotate(gradient, ctx.seed, ctx.side, not ctx.back), None, None, None


rotate.register_autograd(_backward, setup_context=_setup)
