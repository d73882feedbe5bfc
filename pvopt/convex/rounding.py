"""Rounding rules: which value a target takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Nearest", "Rounding", "Stochastic"]


class Rounding(ABC):
    """Choose a code for every target."""

    deterministic: bool = True

    @abstractmethod
    def choose(
        self,
        target: NDArray[np.float64],
        values: NDArray[np.float64],
        generator: np.random.Generator | None = None,
    ) -> NDArray[np.int64]:
        """Return codes ``(..., m)`` for targets ``(..., m)`` among values ``(..., c)``."""


@dataclass(frozen=True)
class Nearest(Rounding):
    r"""Take the nearest value, the first of equally near ones.

    .. math:: z_i = \arg\min_j |t_i - v_j|

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Nearest
        >>> Nearest().choose(np.array([0.2, 0.9]), np.array([0.0, 1.0])).tolist()
        [0, 1]

    References:
        PV-Tuning (arXiv 2405.14852), the linearized V step.
    """

    def choose(
        self,
        target: NDArray[np.float64],
        values: NDArray[np.float64],
        generator: np.random.Generator | None = None,
    ) -> NDArray[np.int64]:
        """Return the code of the nearest value."""
        return np.abs(target[..., :, None] - values[..., None, :]).argmin(-1)


@dataclass(frozen=True)
class Stochastic(Rounding):
    r"""Draw one of two values at random.

    ``rule="power"``: of the two nearest values, at distances :math:`e_1 \le e_2`,

    .. math:: P(\text{nearest}) = \frac{e_1^{-1/\tau}}{e_1^{-1/\tau} + e_2^{-1/\tau}} .

    ``rule="linear"``: of the two values :math:`a \le t \le b` around the target,

    .. math:: P(b) = \frac{t - a}{b - a}, \qquad \mathrm{E}[x] = t .

    A target that hits a value keeps it; one outside all values takes the outermost.

    Args:
        rule: ``"power"`` or ``"linear"``.
        temperature: :math:`\tau > 0` of the power rule; small is close to :class:`Nearest`.

    Raises:
        ValueError: for another rule or a temperature that is not positive.

    Example:
        >>> import numpy as np
        >>> from pvopt.convex import Stochastic
        >>> rule, values = Stochastic("linear"), np.array([0.0, 1.0])
        >>> float(rule.choose(np.full(9999, 0.3), values, np.random.default_rng(0)).mean().round(1))
        0.3

    References:
        PV-Tuning (arXiv 2405.14852), experiments: the stochastic rounding baseline.
    """

    rule: Literal["power", "linear"] = "power"
    temperature: float = 1.0
    deterministic = False

    def __post_init__(self) -> None:
        if self.rule not in ("power", "linear"):
            raise ValueError(f"rule must be 'power' or 'linear', got {self.rule!r}")
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def choose(
        self,
        target: NDArray[np.float64],
        values: NDArray[np.float64],
        generator: np.random.Generator | None = None,
    ) -> NDArray[np.int64]:
        """Return random codes; raise a ValueError without a generator."""
        if generator is None:
            raise ValueError("generator must be given: stochastic rounding draws at random")
        if values.shape[-1] == 1:
            return np.zeros(target.shape, dtype=np.int64)
        first, second = self._pair(target, values)
        near = np.abs(target - _take(values, first))
        far = np.abs(target - _take(values, second))
        exponent = 1 / self.temperature if self.rule == "power" else 1.0
        # The odds near^-k : far^-k as far^k : near^k, which an exact hit leaves finite.
        ratio = np.divide(near, far, out=np.zeros_like(near), where=far > 0) ** exponent
        return np.where(generator.random(target.shape) * (1 + ratio) < 1, first, second)

    def _pair(
        self, target: NDArray[np.float64], values: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the codes of the nearest value and of the one it competes with."""
        offset = values[..., None, :] - target[..., :, None]
        distance = np.abs(offset)
        first = distance.argmin(-1)
        if self.rule == "linear":  # the other side of the target; none beyond the outermost value
            side = np.take_along_axis(offset, first[..., None], -1)
            distance = np.where(offset * side < 0, distance, np.inf)
        else:
            distance = distance.copy()
            np.put_along_axis(distance, first[..., None], np.inf, -1)
        second = distance.argmin(-1)
        alone = np.isinf(np.take_along_axis(distance, second[..., None], -1)[..., 0])
        return first, np.where(alone, first, second)


def _take(values: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    leading = codes.shape[:-1] + values.shape[-1:]
    return np.take_along_axis(np.broadcast_to(values, leading), codes, axis=-1)
