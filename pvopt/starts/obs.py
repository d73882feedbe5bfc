"""Sparse weights by the Optimal Brain Surgeon: what its starts share, and all at once."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pvopt.core.layout import matrix_shape
from pvopt.core.registry import ShortForm
from pvopt.core.validation import check_number
from pvopt.metrics.contract import Metric
from pvopt.metrics.row import Row
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.options import FitOptions
from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.sparse_support import OnSupport

from .contract import STARTS, Start
from .damping import damped_cholesky
from .nonzeros import round_nonzeros
from .refit import refit_support
from .removal_groups import RemovalGroups

__all__ = ["OBS", "OneShotOBS"]


@dataclass(frozen=True, kw_only=True)
class OBS(Start):
    """What starts of sparse weights share: damping, the inverse, the fit of what is left."""

    damping: float = 0.01
    fit_options: FitOptions = field(default_factory=FitOptions)

    needs_metric = Row

    def __post_init__(self) -> None:
        check_number("damping", self.damping, 0.0)

    def _start(
        self,
        weight: Tensor,
        parametrization: Parametrization,
        metric: Metric | None,
        generator: torch.Generator,
    ) -> Representation:
        if not isinstance(parametrization, OnSupport):
            raise TypeError(
                f"{type(self).__name__} starts sparse parametrizations (Sparse, SparseNM, "
                f"QuantizedNonzeros), got {type(parametrization).__name__}"
            )
        assert isinstance(metric, Row)
        shape = tuple(weight.shape)
        own, factor = damped_cholesky(metric, self.damping)
        inverse = torch.cholesky_inverse(factor)  # column by column
        inverse = inverse.to(weight.dtype, memory_format=torch.contiguous_format)
        matrix = weight.reshape(matrix_shape(shape))
        sparsity = parametrization.sparsity
        groups = RemovalGroups(sparsity.layout(shape), sparsity.num_nonzeros(shape))
        support, values = self._solve(matrix, groups, own.hessian, inverse)
        return parametrization.represent(
            values.view(shape),
            support.view(shape),
            generator=generator,
            fit=partial(
                round_nonzeros,
                values,
                support,
                own.hessian,
                options=self.fit_options,
                generator=generator,
            ),
        )

    @abstractmethod
    def _solve(
        self, weight: Tensor, groups: RemovalGroups, hessian: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return which weights of the matrix ``[rows, in]`` stay, and their values."""


@STARTS.register(ShortForm.word("obs", "sparse weights: those of least saliency go, all at once"))
@dataclass(frozen=True, kw_only=True)
class OneShotOBS(OBS):
    r"""Remove the weights of least saliency, all at once, and refit the others.

    .. math:: \rho_i = \frac{w_i^2}{2\, [H^{-1}]_{ii}}, \qquad H_{SS}\, w_S = (H w^0)_S

    The saliency is by how much the layer's error grows if that weight alone is removed.

    Args:
        damping: fraction of the Hessian's mean diagonal that is added to it; more where that does
            not make it positive definite.
        fit_options: how hard a fit of quantized nonzeros tries.

    Raises:
        ValueError: if ``damping`` is negative or not finite.

    Example:
        >>> import torch
        >>> from pvopt import Row, Sparse
        >>> from pvopt.starts import OneShotOBS
        >>> metric = Row(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
        >>> start, weight = OneShotOBS(damping=0.0), torch.tensor([[1.0, 1.5]])
        >>> start.start(weight, Sparse(density=0.5), metric=metric).decode()
        tensor([[1., 0.]])

    References:
        Hassibi & Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon"
        (NeurIPS 1992).
    """

    def _solve(
        self, weight: Tensor, groups: RemovalGroups, hessian: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor]:
        support = groups.least_salient(weight, inverse).logical_not_()
        return support, refit_support(weight, support, hessian)
