"""Rounding rules: which of a group's candidate codes to take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pvopt.core.draws import Draws
from pvopt.core.registry import Registry, ShortForm
from pvopt.parametrizations.contract import Parametrization
from pvopt.parametrizations.query import Candidates, Query

__all__ = ["ROUNDINGS", "Forced", "Nearest", "Rounding", "Stochastic"]

#: Rounding rules by name.
ROUNDINGS: Registry[Rounding] = Registry("rounding")


class Rounding(ABC):
    """Propose candidates for the selected groups, then choose one code for each."""

    num_candidates: int = 1
    #: Whether the rule always takes the first candidate.
    takes_first: bool = False

    def check(self, parametrization: Parametrization) -> None:  # noqa: B027 (a hook, not abstract)
        """Raise a TypeError if the rule cannot work with a parametrization."""

    def propose(self, query: Query) -> Candidates:
        """Ask the parametrization for as many candidates as the rule compares."""
        return query.rep.parametrization.candidates(query.but(count=self.num_candidates))

    @abstractmethod
    def choose(
        self, candidates: Candidates, current_codes: Tensor, draws: Draws | None = None
    ) -> Tensor:
        """Choose one candidate per group.

        Args:
            candidates: ``n`` groups with ``k`` candidates each.
            current_codes: ``[n, codes_per_group]`` int64.
            draws: source of random draws.

        Returns:
            ``[n, codes_per_group]`` int64.
        """


def _take(candidates: Candidates, index: Tensor) -> Tensor:
    """Return candidate ``index[i]`` of group ``i``: ``[n, codes_per_group]``."""
    rows = torch.arange(len(index), device=index.device)
    return candidates.codes[rows, index]


@ROUNDINGS.register(ShortForm.word("nearest", "the candidate of least error"))
@dataclass(frozen=True)
class Nearest(Rounding):
    r"""Take the candidate of least error.

    .. math:: z_g = \arg\min_z \|t_g - \mathrm{decode}(z, v)_g\|^2

    Example:
        >>> found = Candidates(torch.tensor([[[3], [1]]]), torch.tensor([[0.1, 0.4]]))
        >>> Nearest().choose(found, torch.tensor([[1]]))
        tensor([[3]])

    References:
        PV-Tuning (arXiv 2405.14852), section 3.2: the linearized V step.
    """

    takes_first = True

    def choose(
        self, candidates: Candidates, current_codes: Tensor, draws: Draws | None = None
    ) -> Tensor:
        """Return the first candidate of each group."""
        return candidates.codes[:, 0]


@ROUNDINGS.register(ShortForm.word("forced", "the best candidate that is not the current code"))
@dataclass(frozen=True)
class Forced(Rounding):
    """Take the best candidate that differs from the current code.

    Used without a buffer, where steps too short to cross to another code would be lost. A group
    with a single possible code keeps it.

    Example:
        >>> found = Candidates(torch.tensor([[[3], [1]]]), torch.tensor([[0.1, 0.4]]))
        >>> Forced().choose(found, torch.tensor([[3]]))
        tensor([[1]])

    References:
        PV-Tuning (arXiv 2405.14852), appendix on implementation details.
    """

    num_candidates = 2

    def choose(
        self, candidates: Candidates, current_codes: Tensor, draws: Draws | None = None
    ) -> Tensor:
        """Return the first candidate unlike the current code."""
        is_current = (candidates.codes[:, 0] == current_codes).all(-1)  # [n]
        has_second = torch.isfinite(candidates.errors[:, 1])
        return _take(candidates, (is_current & has_second).long())


@ROUNDINGS.register(
    ShortForm(
        form="stochastic[:linear]",
        meaning="one of two codes at random",
        example="stochastic, stochastic:linear",
        pattern=r"stochastic(?::(power|linear))?",
        settings=lambda rule: dict(rule=rule or "power"),
        write=lambda r: "stochastic" + ("" if r.rule == "power" else f":{r.rule}"),
    )
)
@dataclass(frozen=True)
class Stochastic(Rounding):
    r"""Draw one of two codes at random, the nearer one with the larger probability.

    ``rule="power"``: of the two nearest codes, at distances :math:`e_1 \le e_2`,

    .. math:: P(\text{nearest}) = \frac{e_1^{-1/\tau}}{e_1^{-1/\tau} + e_2^{-1/\tau}}

    ``rule="linear"`` (scalar codes): of the two levels :math:`a \le t \le b` around the target,

    .. math:: P(b) = \frac{t - a}{b - a}, \qquad \mathrm{E}[w] = t .

    An exact hit is always kept. Targets outside the outermost levels take the outermost one, so
    the linear rule is unbiased between the levels only.

    Args:
        rule: ``"power"`` or ``"linear"``.
        temperature: :math:`\tau > 0` of the power rule; small is close to :class:`Nearest`.

    Raises:
        ValueError: for another rule or a temperature that is not positive.

    Example:
        >>> found = Candidates(torch.tensor([[[3], [1]]]), torch.tensor([[0.0, 0.4]]))
        >>> Stochastic().choose(found, torch.tensor([[1]]), Draws.of(None, torch.device("cpu")))
        tensor([[3]])

    References:
        PV-Tuning (arXiv 2405.14852), section 4 (stochastic rounding baseline).
    """

    rule: Literal["power", "linear"] = "power"
    temperature: float = 1.0

    num_candidates = 2

    def __post_init__(self) -> None:
        if self.rule not in ("power", "linear"):
            raise ValueError(f"rule must be 'power' or 'linear', got {self.rule!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def check(self, parametrization: Parametrization) -> None:
        """Refuse the linear rule for codes that stand for several weights."""
        if self.rule == "linear" and not parametrization.has_levels:
            raise TypeError(
                f"Stochastic(rule='linear') needs scalar codes, which "
                f"{type(parametrization).__name__} has not; use rule='power'"
            )

    def propose(self, query: Query) -> Candidates:
        """Ask for the two nearest codes (power) or the two levels around the target (linear)."""
        if self.rule == "linear":
            return query.rep.parametrization.bracket(query)
        return super().propose(query)

    def choose(
        self, candidates: Candidates, current_codes: Tensor, draws: Draws | None = None
    ) -> Tensor:
        """Draw the first or the second candidate of each group."""
        first, second = candidates.errors.double().sqrt().unbind(-1)  # distances, [n]
        # P(first) = e1^(-1/t) / (e1^(-1/t) + e2^(-1/t)) = 1 / (1 + (e1/e2)^(1/t)), which neither
        # overflows nor divides by zero; the linear rule is the same with t = 1 on |t - a|, |t - b|.
        power = 1.0 if self.rule == "linear" else 1.0 / self.temperature
        ratio = torch.where(first == 0, 0.0, first / second)  # first / 0 = inf: take the second
        keep_first = 1.0 / (1.0 + ratio.pow(power))
        draws = Draws.of(draws, keep_first.device)
        draw = draws.uniform(len(keep_first) // draws.count, torch.float64).flatten()
        return _take(candidates, (draw >= keep_first).long())
