"""Incoherence: any parametrization, of a weight that is rotated by random orthogonal matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pvopt.parametrizations.contract import Parametrization
from pvopt.metrics.block import BlockMetric
from pvopt.parametrizations.candidates import Candidates
from pvopt.parametrizations.layout import GroupLayout, matrix_shape
from .orthogonal import kronecker_factors, transform
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.validation import check_integer, prepare_fit

__all__ = ["Incoherent"]


@dataclass(frozen=True)
class Incoherent(Parametrization):
    r"""Represent a weight in a space where no entry sticks out (QuIP, QuIP#).

    .. math:: W = U'\, \mathrm{decode}(z, v)\, V, \qquad
        U = H_m \,\mathrm{diag}(s_U), \quad V = H_n \,\mathrm{diag}(s_V)

    with symmetric orthogonal ``H`` of small entries (Hadamard matrices where one can be built, see
    ``pvopt.spaces.orthogonal``) and random signs ``s``. Every entry of
    ``U W V'`` is a sum of all of ``W`` with random signs, so it looks Gaussian, and outliers, which
    few levels cannot reach, are spread over all entries. Norms are kept: the V step, its subspace
    and its trust region mean the same in either space.

    The signs follow from the seed and are not stored; one seed serves all weights of a model. A
    diagonal metric of the weights is no diagonal of the rotated ones, so it is refused. A
    metric ``X'X`` that all rows share becomes ``V X'X V'``, exactly.

    Args:
        inner: parametrization of the rotated weight.
        seed: of the signs, 0 to 2^63 - 1.

    Raises:
        TypeError: if ``inner`` is no parametrization or is itself ``Incoherent``, or ``seed`` no
            integer.
        ValueError: if ``seed`` is out of range, or (on use) the inner groups do not fit.

    Example:
        >>> from pvopt import E8P
        >>> weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        >>> weight[3, 5] = 40.0
        >>> for p in (E8P(2), Incoherent(E8P(2))):
        ...     error = (p.fit(weight).decode() - weight).square().sum()
        ...     print(round(float(error / weight.square().sum()), 2))
        0.17
        0.09

    References:
        QuIP (arXiv 2307.13304), section 4; QuIP# (arXiv 2402.04396), section 3.
    """

    inner: Parametrization
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Parametrization) or isinstance(self.inner, Incoherent):
            raise TypeError(
                f"inner must be a Parametrization other than Incoherent, got {self.inner!r}"
            )
        check_integer("seed", self.seed, 0, (1 << 63) - 1)

    def rotate(self, weight: Tensor) -> Tensor:
        """Return the rotated weight ``U W V'``.

        Args:
            weight: ``[*shape]`` floating, seen as a matrix.

        Returns:
            ``[*shape]``, a new contiguous tensor.

        Example:
            >>> from pvopt import E8P
            >>> weight = torch.eye(16)
            >>> rotated = Incoherent(E8P()).rotate(weight)
            >>> torch.allclose(Incoherent(E8P()).unrotate(rotated), weight, atol=1e-6)
            True
        """
        rows, columns = matrix_shape(weight.shape)
        left, right = self._signs(weight)
        matrix = transform((weight.reshape(rows, columns) * left[:, None]).T).T
        return transform(matrix * right).reshape(weight.shape)

    def unrotate(self, rotated: Tensor) -> Tensor:
        """Return the weight of a rotated weight, the inverse and adjoint of :meth:`rotate`.

        Args:
            rotated: ``[*shape]`` floating.

        Returns:
            ``[*shape]``, a new tensor.

        Example:
            >>> from pvopt import E8P
            >>> float(Incoherent(E8P()).unrotate(torch.zeros(8, 8)).abs().max())
            0.0
        """
        rows, columns = matrix_shape(rotated.shape)
        left, right = self._signs(rotated)
        matrix = transform(transform(rotated.reshape(rows, columns).T).T)
        return (matrix * right).mul_(left[:, None]).reshape(rotated.shape)

    def _signs(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the signs of rows ``[rows]`` and columns ``[columns]`` of a weight."""
        sizes = matrix_shape(weight.shape)
        left, right = (random_signs(self.seed, side, size) for side, size in enumerate(sizes))
        return left.to(weight), right.to(weight)

    def _inner(self, rep: Representation) -> Representation:
        """Return the same codes and values as a representation of the rotated weight."""
        return Representation(self.inner, rep.codes, rep.values, rep.shape)

    @property
    def values_follow_codes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the inner parametrization's."""
        return self.inner.values_follow_codes

    @property
    def code_bits(self) -> int:
        """As the inner parametrization's."""
        return self.inner.code_bits

    @property
    def num_codes(self) -> int:
        """As the inner parametrization's."""
        return self.inner.num_codes

    @property
    def codes_per_word(self) -> int:
        """As the inner parametrization's."""
        return self.inner.codes_per_word

    @property
    def codes_per_group(self) -> int:
        """As the inner parametrization's."""
        return self.inner.codes_per_group

    def code_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """As the inner parametrization's."""
        return self.inner.code_shape(shape)

    def check_codes(self, codes: Tensor, shape: tuple[int, ...]) -> None:
        """As the inner parametrization's."""
        self.inner.check_codes(codes, shape)

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        """Groups of the rotated weight."""
        for size in matrix_shape(shape):
            kronecker_factors(size)
        return self.inner.layout(shape)

    def split(self, weight: Tensor) -> Tensor:
        """Rotate, then cut."""
        return self.inner.split(self.rotate(weight))

    def merge(self, groups: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Put together, then rotate back."""
        return self.unrotate(self.inner.merge(groups, shape))

    def split_diagonal(self, metric: Tensor) -> Tensor:
        """Refuse: a diagonal metric of the weights is no diagonal of the rotated ones.

        Raises:
            TypeError: always.
        """
        raise TypeError(_NO_DIAGONAL)

    def split_hessian(self, hessian: Tensor, shape: tuple[int, ...]) -> Tensor:
        r"""Rotate the metric that all rows share along with the weight.

        .. math:: \|X (W - W_q)'\| = \|(X V')(U W V' - U W_q V')'\|,
            \qquad X'X \to V\, X'X\, V'
        """
        sign = random_signs(self.seed, 1, matrix_shape(shape)[1]).to(hessian)
        rotated = transform(transform(hessian * sign * sign[:, None]).T)
        return self.inner.split_hessian(rotated, shape)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """As the inner parametrization's."""
        return self.inner.value_shapes(shape)

    def value_columns(self, shape: tuple[int, ...]) -> None:
        """None: values belong to columns of the rotated weight, not to columns of the weight."""
        return None

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Fit the inner parametrization to the rotated weight.

        Raises:
            TypeError: if a diagonal metric is given.
        """
        if metric is not None:
            raise TypeError(_NO_DIAGONAL)
        weight, _, generator = prepare_fit(weight, None, generator)
        self.layout(tuple(weight.shape))
        rep = self.inner.fit(self.rotate(weight), generator=generator)
        return Representation(self, rep.codes, rep.values, rep.shape)

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Return groups of the rotated weight."""
        return self.inner.decode_groups(self._inner(rep), groups, codes)

    def decode_moved(
        self, target: Tensor, rep: Representation, groups: Tensor | None, codes: Tensor
    ) -> Tensor:
        """As the inner parametrization does."""
        return self.inner.decode_moved(target, self._inner(rep), groups, codes)

    def move_(
        self, target: Tensor, rep: Representation, groups: Tensor | None, codes: Tensor
    ) -> None:
        """As the inner parametrization does."""
        self.inner.move_(target, self._inner(rep), groups, codes)

    def carry_(self, name: str, tensor: Tensor, codes: Tensor, rep: Representation) -> None:
        """As the inner parametrization does."""
        self.inner.carry_(name, tensor, codes, self._inner(rep))

    def search(
        self,
        target: Tensor,
        rep: Representation,
        groups: Tensor | None,
        k: int,
        *,
        metric: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """As the inner parametrization does."""
        return self.inner.search(
            target, self._inner(rep), groups, k, metric=metric, generator=generator
        )

    def search_block(
        self,
        target: Tensor,
        rep: Representation,
        groups: Tensor | None,
        k: int,
        *,
        metric: BlockMetric,
        generator: torch.Generator | None,
    ) -> Tensor:
        """As the inner parametrization does."""
        return self.inner.search_block(
            target, self._inner(rep), groups, k, metric=metric, generator=generator
        )

    def candidates(
        self,
        target: Tensor,
        rep: Representation,
        groups: Tensor | None,
        k: int = 1,
        *,
        metric: Tensor | BlockMetric | None = None,
        generator: torch.Generator | None = None,
    ) -> Candidates:
        """As the inner parametrization does, for groups of the rotated weight."""
        return self.inner.candidates(
            target, self._inner(rep), groups, k, metric=metric, generator=generator
        )

    @property
    def has_levels(self) -> bool:
        """As the inner parametrization's."""
        return self.inner.has_levels

    def bracket(self, target: Tensor, rep: Representation, groups: Tensor | None) -> Candidates:
        """As the inner parametrization does, for groups of the rotated weight."""
        return self.inner.bracket(target, self._inner(rep), groups)

    def value_gradients(self, rep: Representation, gradient: Tensor) -> dict[str, Tensor]:
        """Rotate the gradient, then as the inner parametrization does."""
        return self.inner.value_gradients(self._inner(rep), self.rotate(gradient.to(rep.dtype)))

    def bits_per_weight(self, shape: tuple[int, ...], *, value_bits: int = 16) -> float:
        """As the inner parametrization's: the rotation follows from the seed."""
        return self.inner.bits_per_weight(shape, value_bits=value_bits)

    def stored_code_bits(self, shape: tuple[int, ...]) -> int:
        """As the inner parametrization's."""
        return self.inner.stored_code_bits(shape)


_NO_DIAGONAL = (
    "Incoherent takes no diagonal metric: the rotation mixes all weights. Use a metric X'X that "
    "all rows share, or no metric"
)


def random_signs(seed: int, side: int, size: int) -> Tensor:
    """Return ``size`` random signs, int8; the same for ever, as checkpoints depend on them."""
    # NumPy promises the stream of a bit generator, torch that of none of its generators.
    words = np.random.PCG64([seed, side]).random_raw(-(-size // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8))[:size]
    return torch.from_numpy(1 - 2 * bits.astype(np.int8))
