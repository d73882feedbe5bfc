"""How the tensor of a parameter holds matrices of outputs by inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .registry import Registry, ShortForm
from .validation import check_bool

__all__ = ["VIEWS", "MatrixView", "plain_view"]

#: Views by name.
VIEWS: Registry[Any] = Registry("view")


@VIEWS.register(
    ShortForm(
        form="experts+FORM, transposed+FORM, experts-transposed+FORM",
        meaning="any of these, each expert a matrix of its own; [in, out] in place of [out, in]",
        example="experts+grid:4g64, transposed+grid:4g64",
        pattern=r"(experts)(-transposed)?|(transposed)",
        settings=lambda experts, both, alone: dict(
            experts=experts is not None, transposed=(both or alone) is not None
        ),
        write=lambda view: "-".join(["experts"] * view.experts + ["transposed"] * view.transposed),
    )
)
@dataclass(frozen=True, kw_only=True)
class MatrixView:
    r"""The matrices ``[out, in]`` that a parameter holds, as views of its memory.

    .. math:: W_e = \begin{cases} P_e & \text{[experts, out, in]} \\
        P_e' & \text{[experts, in, out]} \end{cases}

    Everything that knows rows and columns (groups, fits, metrics, V steps, packed layers) works on
    these matrices: groups run along a layer's inputs however the layer stores its weight, and
    nothing is shared between experts. A matrix may have more than two dimensions, as the weight of
    a convolution has: its columns are all but the first.

    Args:
        experts: whether the first dimension counts matrices; otherwise there is one.
        transposed: whether inputs come before outputs.

    Raises:
        TypeError: if a setting is not a bool.

    Example:
        >>> import torch
        >>> from pvopt import MatrixView
        >>> view = MatrixView(experts=True, transposed=True)
        >>> view.count((4, 8, 6)), view.matrix_shape((4, 8, 6))
        (4, (6, 8))
        >>> weight = torch.arange(6.0).view(1, 2, 3)
        >>> (matrix,) = view.matrices(weight)
        >>> matrix.tolist()
        [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
        >>> torch.equal(view.join([matrix]), weight)
        True
    """

    experts: bool = False
    transposed: bool = False

    def __post_init__(self) -> None:
        check_bool("experts", self.experts)
        check_bool("transposed", self.transposed)

    @property
    def plain(self) -> bool:
        """Whether the tensor is the matrix."""
        return not (self.experts or self.transposed)

    @property
    def name(self) -> str:
        """The short name, losslessly; empty for a plain view."""
        return "" if self.plain else VIEWS.name(self)

    def _check(self, shape: Sequence[int]) -> None:
        least = 1 + self.experts + self.transposed + (self.experts and not self.transposed)
        if not self.plain and (len(shape) < least or math.prod(shape) == 0):
            order = "[in, out, ...]" if self.transposed else "[out, in, ...]"
            where = f"[experts, {order[1:]}" if self.experts else order
            raise ValueError(f"a weight viewed as {where} must have these, got {list(shape)}")

    def count(self, shape: Sequence[int]) -> int:
        """Return the number of matrices in a parameter of a shape."""
        self._check(shape)
        return shape[0] if self.experts else 1

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of each matrix in a parameter of a shape.

        Raises:
            ValueError: if it has too few dimensions.
        """
        self._check(shape)
        own = tuple(shape[1:] if self.experts else shape)
        return (own[1], own[0], *own[2:]) if self.transposed else own

    def matrices(self, weight: Tensor) -> list[Tensor]:
        """Return the matrices of a parameter, as views: what is written there is in the parameter.

        Args:
            weight: ``[*shape]``.
        """
        self._check(weight.shape)
        parts = list(weight.unbind(0)) if self.experts else [weight]
        return [part.transpose(0, 1) for part in parts] if self.transposed else parts

    def all_matrices(self, weights: Iterable[Tensor]) -> list[Tensor]:
        """Return the matrices of several parameters, those of the first one first."""
        return [matrix for weight in weights for matrix in self.matrices(weight)]

    def join(self, matrices: Sequence[Tensor]) -> Tensor:
        """Return the parameter of its matrices, the inverse of :meth:`matrices`.

        Args:
            matrices: each ``[*matrix_shape]``.
        """
        parts = [m.transpose(0, 1) for m in matrices] if self.transposed else matrices
        return torch.stack(list(parts)) if self.experts else parts[0].contiguous()


_PLAIN = MatrixView()


def plain_view() -> MatrixView:
    """Return the view of a tensor that is the matrix, always the same object."""
    return _PLAIN
