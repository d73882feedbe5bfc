"""The contract of every way to start a representation."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pvopt.parametrizations.contract import Parametrization
from pvopt.spaces.rotation import Incoherent
from pvopt.parametrizations.layout import matrix_shape
from pvopt.parametrizations.representation import Representation

__all__ = ["Initialization"]


class Initialization(ABC):
    """How a dense weight gets its first codes and values; a frozen dataclass of settings.

    A subclass defines ``_start``; :meth:`start` checks and prepares its arguments.
    """

    @property
    def needs_hessian(self) -> bool:
        """Whether :meth:`start` must be given the Hessian of the layer's inputs."""
        return True

    @torch.no_grad()
    def start(
        self,
        weight: Tensor,
        parametrization: Parametrization,
        *,
        hessian: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        r"""Return a representation of a weight that keeps the layer's outputs close.

        .. math:: \min_{z, v} \; \|X (W - W_q)'\|_F^2 = \mathrm{tr}\, (W - W_q) H (W - W_q)',
            \qquad H = X'X

        Args:
            weight: ``[*shape]``, floating; computed in at least float32, seen as a matrix
                ``[out, in]``.
            parametrization: the settings of the representation.
            hessian: ``[in, in]`` symmetric positive semidefinite, ``X'X`` of the layer's inputs
                ``X`` ``[tokens, in]``. Any positive multiple gives the same start, up to rounding:
                the sum over tokens or their mean. None where the method needs none.
            generator: source of every random draw, on the weight's device; None draws from a fresh
                one seeded with 0.

        Returns:
            Codes and values of the weight; the values have the weight's dtype, at least float32.

        Raises:
            TypeError: if the weight is not floating, or the method cannot start the
                parametrization.
            ValueError: if the Hessian is missing or does not fit the weight, either is not finite,
                or groups do not fit the weight.
        """
        if not weight.is_floating_point():
            raise TypeError(f"weight must be floating, got {weight.dtype}")
        weight = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).contiguous()
        if not weight.isfinite().all():
            raise ValueError("weight must be finite, got NaN or infinite entries")
        if generator is None:
            generator = torch.Generator(weight.device).manual_seed(0)
        if hessian is None and self.needs_hessian:
            raise ValueError(
                f"{type(self).__name__} needs the hessian X'X of the layer's inputs, got None"
            )
        if hessian is not None:
            hessian = _checked(hessian, weight)
        if isinstance(parametrization, Incoherent):  # the same problem, in the rotated space
            if hessian is not None:
                hessian = parametrization.split_hessian(hessian, tuple(weight.shape))
            rotated = parametrization.rotate(weight)
            rep = self._start(rotated, parametrization.inner, hessian, generator)
            return Representation(parametrization, rep.codes, rep.values, rep.shape)
        return self._start(weight, parametrization, hessian, generator)

    @abstractmethod
    def _start(
        self,
        weight: Tensor,
        parametrization: Parametrization,
        hessian: Tensor | None,
        generator: torch.Generator,
    ) -> Representation:
        """Start a representation; the arguments are checked.

        Args:
            weight: ``[*shape]``, contiguous, finite, at least float32. Not to be changed.
            parametrization: the settings of the representation.
            hessian: ``[in, in]`` float64 on the weight's device, finite, symmetric, with a
                non-negative diagonal; possibly singular. Not to be changed. None only if
                :attr:`needs_hessian` is False.
            generator: source of every random draw.

        Returns:
            Codes and values of the weight.
        """


def _checked(hessian: Tensor, weight: Tensor) -> Tensor:
    """Return the Hessian in float64 on the weight's device."""
    columns = matrix_shape(weight.shape)[1]
    if tuple(hessian.shape) != (columns, columns):
        raise ValueError(
            f"hessian must have shape [{columns}, {columns}] for a weight of shape "
            f"{list(weight.shape)}, got {list(hessian.shape)}"
        )
    hessian = hessian.detach().to(device=weight.device, dtype=torch.float64)
    if not hessian.isfinite().all():
        raise ValueError("hessian must be finite, got NaN or infinite entries")
    if (hessian.diagonal() < 0).any():
        raise ValueError("hessian must have a non-negative diagonal, got a negative entry")
    size = hessian.diagonal().max()
    if (hessian - hessian.T).abs().max() > 1e-3 * size:
        raise ValueError("hessian must be symmetric, got entries that differ by over 0.1 %")
    return hessian
