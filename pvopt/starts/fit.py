"""The parametrization's own fit as a start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.layout import matrix_shape
from pvopt.parametrizations.representation import Representation

from .contract import Initialization

__all__ = ["Fit"]


@dataclass(frozen=True)
class Fit(Initialization):
    r"""Start by :meth:`pvopt.Parametrization.fit`, with or without the scale of the inputs.

    .. math:: \min_{z, v} \sum_{ij} d_j (W_{ij} - W_{q,ij})^2, \qquad
        d_j = 1 \;\text{or}\; H_{jj}

    For :class:`pvopt.UniformGrid` this is rounding to nearest with a search of the clipping, for
    codebooks (weighted, residual) k-means.

    Args:
        weighted: whether errors count as much as the input they meet, by the diagonal of the
            Hessian; otherwise no data is needed.

    Raises:
        TypeError: if ``weighted`` is no bool.

    Example:
        >>> from pvopt import UniformGrid
        >>> rep = Fit().start(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), UniformGrid(bits=2))
        >>> rep.decode()
        tensor([[0., 1., 2., 3.]])
    """

    weighted: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.weighted, bool):
            raise TypeError(f"weighted must be a bool, got {self.weighted!r}")

    @property
    def needs_hessian(self) -> bool:
        """Whether the fit is weighted."""
        return self.weighted

    def _start(
        self,
        weight: Tensor,
        parametrization: Parametrization,
        hessian: Tensor | None,
        generator: torch.Generator,
    ) -> Representation:
        metric = None
        if self.weighted and hessian is not None:
            diagonal = hessian.diagonal().to(weight.dtype)  # [in]
            usual = diagonal.mean()
            diagonal = diagonal / usual if usual > 0 else torch.ones_like(diagonal)
            metric = diagonal.expand(matrix_shape(weight.shape)).reshape(weight.shape)
        return parametrization.fit(weight, metric=metric, generator=generator)
