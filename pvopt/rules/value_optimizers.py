"""How continuous values move in a P step: small optimizers with moments of their own."""

# torch.optim is built on these functions; their names begin with an underscore all the same.
# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
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

    def rate(self, lr: float, largest: float) -> float:
        """Return the learning rate of the values in a step.

        Args:
            lr: the ratio times the learning rate of the parameter group.
            largest: the largest one so far.
        """
        return lr

    @property
    @abstractmethod
    def moments(self) -> tuple[str, ...]:
        """Names of the tensors of the value's shape that are kept between steps."""

    @abstractmethod
    def move_(
        self,
        values: list[Tensor],
        gradients: list[Tensor],
        moments: Mapping[str, list[Tensor]],
        lrs: Sequence[float],
        steps: Sequence[int],
        units: Sequence[float | Tensor | None],
    ) -> None:
        """Move value tensors in place, each by itself; gradients and moments stay as they are.

        A model has hundreds of them, a few KB each: operations on lists of tensors
        (``torch._foreach_add_`` and its like) save most of the time.

        Args:
            values: of any shapes, updated in place.
            gradients: of the values' shapes.
            moments: one tensor per value under each of the names :attr:`moments`, as the steps
                before left them.
            lrs: learning rate of each value (the ratio is already applied).
            steps: number of each value's update, from 1.
            units: how large a relative step of each value is; None for its own size, a tensor for
                the size of the whole of which the value is some rows.
        """

    @abstractmethod
    def remember_(self, gradients: list[Tensor], moments: Mapping[str, list[Tensor]]) -> None:
        """Update the moments in place by the gradients that values have moved along.

        Called at the end of a step, which could still be undone when the values moved: so no
        copies of moments are needed. It must not raise.

        Args:
            gradients: those of :meth:`move_`.
            moments: those of :meth:`move_`.
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
        >>> from pvopt import SGDValues
        >>> value = torch.tensor([1.0])
        >>> SGDValues().move_([value], [torch.tensor([0.5])], {}, [0.1], [1], [None])
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

    def move_(
        self,
        values: list[Tensor],
        gradients: list[Tensor],
        moments: Mapping[str, list[Tensor]],
        lrs: Sequence[float],
        steps: Sequence[int],
        units: Sequence[float | Tensor | None],
    ) -> None:
        """Take one gradient step."""
        lengths = [-lr for lr in lrs]
        if self.momentum:
            changes = torch._foreach_mul(moments["momentum"], self.momentum)
            torch._foreach_add_(changes, gradients)
            torch._foreach_mul_(changes, lengths)
        else:
            changes = torch._foreach_mul(gradients, lengths)
        torch._foreach_add_(values, changes)

    def remember_(self, gradients: list[Tensor], moments: Mapping[str, list[Tensor]]) -> None:
        """Add the gradients to what is left of earlier ones."""
        if self.momentum:
            momentum = moments["momentum"]
            torch._foreach_mul_(momentum, self.momentum)
            torch._foreach_add_(momentum, gradients)


@dataclass(frozen=True)
class AdamValues(ValueOptimizer):
    r"""Adam on the values, by default in units of each value tensor's own size.

    .. math:: v \leftarrow v - \eta\, \rho(v)\, \frac{\hat m}{\sqrt{\hat u} + \epsilon},
        \qquad \rho(v) = \max(\mathrm{rms}(v), \epsilon_2) \text{ if relative, else } 1

    Codebooks are of unit size and scales of the weights' size, twenty times smaller in a language
    model: one absolute learning rate cannot fit both, one relative rate does. Positions among
    levels (zero points) have a unit of their own, as their size says nothing about how far they may
    move. At 2 bits, with Adam at 3e-3 (``benchmarks.recipes``), five times the group's rate ended
    better than once, three and ten times.

    The group's learning rate may be in any unit (1 for Adadelta, 0.5 for gradient descent); at such
    a relative rate a step would change a scale by its own size. So rates are scaled down until the
    largest so far is ``max_rate``; the shape of a schedule stays.

    Args:
        lr_ratio: values' learning rate over the group's.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment.
        relative: whether steps are in units of the root mean square of the value tensor.
        max_rate: of relative steps; infinity does not limit them.
        floor: :math:`\epsilon_2`, the least size that relative steps are in units of, so that
            values that are 0 can leave it.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> from pvopt import AdamValues
        >>> value, rule = torch.tensor([2.0, -2.0]), AdamValues()
        >>> moments = {name: [torch.zeros(2)] for name in rule.moments}
        >>> rule.move_([value], [torch.tensor([0.3, -9.0])], moments, [0.1], [1], [None])
        >>> value
        tensor([ 1.8000, -1.8000])

    References:
        Kingma & Ba, "Adam" (arXiv 1412.6980); the scaling as in Adafactor (arXiv 1804.04235).
    """

    lr_ratio: float = 5.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-10
    relative: bool = True
    max_rate: float = 0.02
    floor: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, beta in zip(("betas[0]", "betas[1]"), self.betas, strict=True):
            _check_unit(name, beta)
        for name in ("eps", "max_rate", "floor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def rate(self, lr: float, largest: float) -> float:
        if not self.relative or largest <= self.max_rate:
            return lr
        return lr * (self.max_rate / largest)

    @property
    def moments(self) -> tuple[str, ...]:
        """First and second moment."""
        return ("exp_avg", "exp_avg_sq")

    def move_(
        self,
        values: list[Tensor],
        gradients: list[Tensor],
        moments: Mapping[str, list[Tensor]],
        lrs: Sequence[float],
        steps: Sequence[int],
        units: Sequence[float | Tensor | None],
    ) -> None:
        """Take one Adam step."""
        first, second = self.betas
        divisors = torch._foreach_mul(moments["exp_avg_sq"], second)
        torch._foreach_addcmul_(divisors, gradients, gradients, value=1 - second)
        torch._foreach_div_(divisors, [1 - second**step for step in steps])
        torch._foreach_sqrt_(divisors)
        torch._foreach_add_(divisors, self.eps)
        if self.relative:
            # In double precision: the same size, whatever the order of the entries.
            sizes = list(torch._foreach_norm(values, dtype=torch.float64))
            torch._foreach_div_(sizes, [value.numel() ** 0.5 for value in values])
            for place, unit in enumerate(units):
                if isinstance(unit, Tensor):
                    sizes[place].copy_(unit)
            torch._foreach_clamp_min_(sizes, self.floor)
            for place, unit in enumerate(units):
                if unit is not None and not isinstance(unit, Tensor):
                    sizes[place].fill_(unit)
            torch._foreach_div_(divisors, _rounded(sizes, values))
        means = torch._foreach_lerp(moments["exp_avg"], gradients, 1 - first)
        lengths = [-lr / (1 - first**step) for lr, step in zip(lrs, steps, strict=True)]
        torch._foreach_addcdiv_(values, means, divisors, lengths)

    def remember_(self, gradients: list[Tensor], moments: Mapping[str, list[Tensor]]) -> None:
        """Let both moments take up the gradients."""
        first, second = self.betas
        torch._foreach_lerp_(moments["exp_avg"], gradients, 1 - first)
        squares = moments["exp_avg_sq"]
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)


def _rounded(sizes: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    """Return scalars in the precision of the values."""
    if len({(value.device, value.dtype) for value in values}) == 1:
        return list(torch.stack(sizes).to(values[0].dtype).unbind())
    return [size.to(value.dtype) for size, value in zip(sizes, values, strict=True)]
