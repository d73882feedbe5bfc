"""How continuous values move in a P step: small optimizers with moments of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

__all__ = ["AdamValues", "SGDValues", "ValueOptimizer"]


def _check_unit(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


@dataclass(frozen=True)
class ValueOptimizer(ABC):
    """The rule by which a P step moves values along their gradient.

    Args:
        lr_ratio: learning rate of the values divided by the learning rate of their parameter
            group; a constant, so that any scheduler of the group drives both.
    """

    lr_ratio: float = 1.0

    def __post_init__(self) -> None:
        if not self.lr_ratio >= 0:
            raise ValueError(f"lr_ratio must not be negative, got {self.lr_ratio}")

    @property
    @abstractmethod
    def moments(self) -> tuple[str, ...]:
        """Names of the tensors of the value's shape that are kept between steps."""

    @abstractmethod
    def update_(
        self, value: Tensor, gradient: Tensor, moments: dict[str, Tensor], lr: float, step: int
    ) -> None:
        """Move one value tensor in place.

        Args:
            value: any shape, updated in place.
            gradient: of the value's shape; may be overwritten.
            moments: the tensors named by :attr:`moments`, updated in place.
            lr: learning rate of the values (the ratio is already applied).
            step: number of the update, from 1.
        """


@dataclass(frozen=True)
class SGDValues(ValueOptimizer):
    r"""Gradient descent on the values, with optional momentum.

    .. math:: m \leftarrow \mu m + \nabla_v, \qquad v \leftarrow v - \eta\, m

    Args:
        lr_ratio: values' learning rate over the group's.
        momentum: :math:`\mu` in [0, 1).

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> value = torch.tensor([1.0])
        >>> SGDValues().update_(value, torch.tensor([0.5]), {}, lr=0.1, step=1)
        >>> value
        tensor([0.9500])
    """

    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_unit("momentum", self.momentum)

    @property
    def moments(self) -> tuple[str, ...]:
        """The momentum buffer, if there is momentum."""
        return ("momentum",) if self.momentum else ()

    def update_(
        self, value: Tensor, gradient: Tensor, moments: dict[str, Tensor], lr: float, step: int
    ) -> None:
        """Take one gradient step."""
        if self.momentum:
            gradient = moments["momentum"].mul_(self.momentum).add_(gradient)
        value.sub_(gradient, alpha=lr)


@dataclass(frozen=True)
class AdamValues(ValueOptimizer):
    r"""Adam on the values, by default in units of each value tensor's own size.

    .. math:: v \leftarrow v - \eta\, \rho(v)\, \frac{\hat m}{\sqrt{\hat u} + \epsilon},
        \qquad \rho(v) = \mathrm{rms}(v) \text{ if relative, else } 1

    Codebooks are of unit size and scales of the weights' size, twenty times smaller in a language
    model: one absolute learning rate cannot fit both, one relative rate does.

    Args:
        lr_ratio: values' learning rate over the group's.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment.
        relative: whether steps are in units of the root mean square of the value tensor.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> value, rule = torch.tensor([2.0, -2.0]), AdamValues()
        >>> moments = {name: torch.zeros(2) for name in rule.moments}
        >>> rule.update_(value, torch.tensor([0.3, -9.0]), moments, lr=0.1, step=1)
        >>> value
        tensor([ 1.8000, -1.8000])

    References:
        Kingma & Ba, "Adam" (arXiv 1412.6980); the scaling as in Adafactor (arXiv 1804.04235).
    """

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-10
    relative: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, beta in zip(("betas[0]", "betas[1]"), self.betas, strict=True):
            _check_unit(name, beta)
        if not self.eps > 0:
            raise ValueError(f"eps must be positive, got {self.eps}")

    @property
    def moments(self) -> tuple[str, ...]:
        """First and second moment."""
        return ("exp_avg", "exp_avg_sq")

    def update_(
        self, value: Tensor, gradient: Tensor, moments: dict[str, Tensor], lr: float, step: int
    ) -> None:
        """Take one Adam step."""
        first, second = self.betas
        mean = moments["exp_avg"].lerp_(gradient, 1 - first)
        square = moments["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        scale = (square / (1 - second**step)).sqrt_().add_(self.eps)
        direction = mean / scale
        if self.relative:
            direction *= value.square().mean().sqrt()
        value.sub_(direction, alpha=lr / (1 - first**step))
