"""Rotated weights: random orthogonal matrices on both sides, so that no entry sticks out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pvopt.core.layout import check_divides, matrix_shape
from pvopt.core.registry import ShortForm
from pvopt.core.validation import check_integer
from pvopt.metrics.contract import Metric

from .contract import SPACES, Space
from .orthogonal import kronecker_factors, transform

__all__ = ["Rotation", "random_signs", "rotate"]


@SPACES.register(
    ShortForm(
        form="had[N]+FORM",
        meaning="any of these after random Hadamard rotations (in blocks of N)",
        example="had+e8p:2, had128+vq:8g4",
        pattern=r"had(\d+)?",
        settings=lambda block: dict(block=None if block is None else int(block)),
        write=lambda s: "had" + ("" if s.block is None else str(s.block)),
    )
)
@dataclass(frozen=True, kw_only=True)
class Rotation(Space):
    r"""A space where the entries of a weight look Gaussian (incoherence; QuIP, QuIP#).

    .. math:: \hat W = U\, W\, V', \qquad
        U = H_m \,\mathrm{diag}(s_U), \quad V = H_n \,\mathrm{diag}(s_V)

    with symmetric orthogonal ``H`` of small entries (Hadamard matrices where one can be built, see
    ``pvopt.spaces.transform``) and random signs ``s``. Every entry is a sum of all of ``W`` with
    random signs, so outliers, which few levels cannot reach, are spread over all entries. Norms
    are kept: the V step, its subspace and its trust region mean the same in either space. With a
    block, ``H`` is block diagonal.

    The signs follow from the seed and are not stored; one seed serves all weights of a model. A
    diagonal metric that differs between rows is refused. A metric ``X'X`` that all rows share
    becomes ``V X'X V'``, exactly.

    Args:
        seed: of the signs, 0 to 2^63 - 1.
        block: size of the blocks of ``H``, a divisor of rows and columns; None rotates whole rows
            and columns.

    Raises:
        TypeError: if a setting is not an integer.
        ValueError: if one is out of range, or (on use) the block does not divide the weight or a
            size has no fast transform.

    Example:
        >>> import torch
        >>> from pvopt import E8P, Rotation, Scheme
        >>> weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        >>> weight[3, 5] = 40.0
        >>> for scheme in (Scheme(E8P()), Scheme(E8P(), Rotation())):
        ...     error = (scheme.fit(weight).decode() - weight).square().sum()
        ...     print(round(float(error / weight.square().sum()), 2))
        0.17
        0.09

    References:
        QuIP (arXiv 2307.13304), section 4; QuIP# (arXiv 2402.04396), section 3.
    """

    seed: int = 0
    block: int | None = None

    on_activations = True

    def __post_init__(self) -> None:
        check_integer("seed", self.seed, 0, (1 << 63) - 1)
        if self.block is not None:
            check_integer("block", self.block, 1, 1 << 20)
            kronecker_factors(self.block)

    def inner_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.block is None:
            for size in matrix_shape(shape):
                kronecker_factors(size)
        else:
            check_divides("block", self.block, shape)
            check_divides("block", self.block, shape, axis="rows")
        return tuple(shape)

    def rotate(self, x: Tensor, side: int, *, back: bool = False) -> Tensor:
        """Rotate the last axis: ``x V'`` for the columns' side, ``x U'`` for that of the rows.

        Args:
            x: ``[..., n]`` floating.
            side: 0 for the signs of a weight's rows, 1 for those of its columns.
            back: whether to apply the inverse, which is also the adjoint.
        """
        return rotate(x, self.seed, side, back, self.block or x.shape[-1])

    def enter(self, weight: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        matrix = weight.reshape(matrix_shape(weight.shape))
        matrix = self.rotate(matrix.T, 0).T
        return self.rotate(matrix, 1).reshape(weight.shape)

    def leave(self, inner: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        matrix = inner.reshape(matrix_shape(shape))
        matrix = self.rotate(matrix.T, 0, back=True).T
        return self.rotate(matrix, 1, back=True).reshape(shape)

    def enter_inputs(self, x: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        return self.rotate(x, 1)

    def leave_outputs(
        self, y: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]
    ) -> Tensor:
        return self.rotate(y, 0, back=True)

    def enter_metric(
        self, metric: Metric | None, shape: tuple[int, ...], owned: Mapping[str, Tensor]
    ) -> Metric | None:
        if metric is None:
            return None
        return metric.rotated(functools.partial(self.rotate, side=1), shape)


# An operation of its own: torch.compile cannot look into the tables that NumPy makes.
@torch.library.custom_op("pvopt::rotate", mutates_args=())
def rotate(x: Tensor, seed: int, side: int, back: bool, block: int) -> Tensor:
    r"""Rotate the last axis by random signs and a symmetric orthogonal matrix.

    .. math:: y = x\,\mathrm{diag}(s)\,H, \qquad \text{back: } y = x\,H\,\mathrm{diag}(s)

    Args:
        x: ``[..., n]`` floating.
        seed: of the signs, as of :class:`Rotation`.
        side: 0 for the signs of a weight's rows, 1 for those of its columns.
        back: which of the two; each is the inverse and the adjoint of the other.
        block: size of the blocks of ``H``; divides ``n``.

    Returns:
        ``[..., n]`` of the same dtype, computed in at least float32.

    Example:
        >>> import torch
        >>> from pvopt.spaces.rotation import rotate
        >>> x = torch.randn(3, 12)
        >>> back = rotate(rotate(x, 7, 0, False, 12), 7, 0, True, 12)
        >>> torch.allclose(back, x, atol=1e-5)
        True
    """
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    signs = random_signs(seed, side, x.shape[-1]).to(exact)
    blocks = (exact if back else exact * signs).unflatten(-1, (-1, block))
    rotated = transform(blocks).flatten(-2)
    return (rotated * signs if back else rotated).to(x.dtype)


@rotate.register_fake
def _fake(x: Tensor, seed: int, side: int, back: bool, block: int) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx, inputs: tuple, output: Tensor) -> None:
    _, ctx.seed, ctx.side, ctx.back, ctx.block = inputs


def _backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    pulled = rotate(gradient, ctx.seed, ctx.side, not ctx.back, ctx.block)
    return pulled, None, None, None, None


rotate.register_autograd(_backward, setup_context=_setup)


@functools.lru_cache(maxsize=64)
def random_signs(seed: int, side: int, size: int) -> Tensor:
    """Return ``size`` random signs, int8; the same for ever, as checkpoints depend on them."""
    # NumPy promises the stream of a bit generator, torch that of none of its generators.
    words = np.random.PCG64([seed, side]).random_raw(-(-size // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8))[:size]
    return torch.from_numpy(1 - 2 * bits.astype(np.int8))
