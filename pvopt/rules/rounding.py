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
        >>> import torch
        >>> from pvopt import Candidates, Nearest
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
        >>> import torch
        >>> from pvopt import Candidates, Forced
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


# Codes near the target among which the one to draw against is looked for.
_NEIGHBOURS = 8


@ROUNDINGS.register(
    ShortForm(
        form="stochastic[:power]",
        meaning="one of two codes at random",
        example="stochastic, stochastic:power",
        pattern=r"stochastic(?::(power|linear))?",
        settings=lambda rule: dict(rule=rule or "linear"),
        write=lambda r: "stochastic" + ("" if r.rule == "linear" else f":{r.rule}"),
    )
)
@dataclass(frozen=True)
class Stochastic(Rounding):
    r"""Draw one of two codes at random, the nearer one with the larger probability.

    ``rule="linear"`` keeps the direction of the update. Codes with scalar levels take one of the
    two levels :math:`a \le t \le b` around the target,

    .. math:: P(b) = \frac{t - a}{b - a}, \qquad \mathrm{E}[w] = t .

    Vector codes take the code :math:`a` nearest to the target, or the one whose cell the ray from
    :math:`a` through the target enters next, :math:`b`:

    .. math:: P(b) = \frac{\|r\|^2}{\langle b - a, r\rangle}, \qquad
        \mathrm{E}\,\langle w - a, r\rangle = \|r\|^2, \qquad r = t - a,

    which is the first formula where groups are scalars. Of all codes ahead, :math:`b` also makes
    the expected squared length of the step the least. Both are unbiased (vectors: along the
    update) as far as there are codes on either side: targets outside the outermost levels take the
    outermost one.

    ``rule="power"`` draws from the two nearest codes, at distances :math:`e_1 \le e_2`, with

    .. math:: P(\text{nearest}) = \frac{e_1^{-1/\tau}}{e_1^{-1/\tau} + e_2^{-1/\tau}} .

    It does not look at the direction: after a short step the second nearest code is the nearest
    neighbour of the present one, wherever the update points. That is a random walk and destroys a
    model unless the temperature is low. An exact hit is always kept.

    Args:
        rule: ``"linear"`` or ``"power"``.
        temperature: :math:`\tau > 0` of the power rule; small is close to :class:`Nearest`.

    Raises:
        ValueError: for another rule or a temperature that is not positive.

    Example:
        >>> import torch
        >>> from pvopt import Candidates, Draws, Stochastic
        >>> found = Candidates(torch.tensor([[[3], [1]]]), torch.tensor([[0.0, 0.4]]))
        >>> Stochastic().choose(found, torch.tensor([[1]]), Draws.of(None, torch.device("cpu")))
        tensor([[3]])

    References:
        PV-Tuning (arXiv 2405.14852), section 4 (stochastic rounding baseline); Gupta et al., "Deep
        Learning with Limited Numerical Precision" (arXiv 1502.02551), section 3 (the linear rule).
    """

    rule: Literal["linear", "power"] = "linear"
    temperature: float = 1.0

    num_candidates = 2

    def __post_init__(self) -> None:
        if self.rule not in ("linear", "power"):
            raise ValueError(f"rule must be 'linear' or 'power', got {self.rule!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def propose(self, query: Query) -> Candidates:
        """Ask for the two codes to draw from; errors of the linear rule are along the update."""
        if self.rule == "power":
            return super().propose(query)
        if query.rep.parametrization.has_levels:
            return query.rep.parametrization.bracket(query)
        return _nearest_and_ahead(query)

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


def _nearest_and_ahead(query: Query) -> Candidates:
    """Return the code nearest to each target, and the next one on the way from it to the target.

    Leaving the nearest code ``a`` along ``r = target - a``, the cell of a code ``c`` begins after
    ``|c - a|^2 / (2 <c - a, r>)`` times ``r``.

    Args:
        query: any targets, ``[n, group_size]``.

    Returns:
        Two codes of each group; ``errors`` are squared distances from the target along ``r``, and
        ``inf`` where no code lies ahead.
    """
    parametrization = query.rep.parametrization
    found = parametrization.candidates(query.but(count=_NEIGHBOURS))
    codes, target = found.codes, query.target
    points = torch.stack([parametrization.decode_moved(query, c) for c in codes.unbind(1)], dim=1)
    residual = target - points[:, 0]  # [n, size]
    steps = points[:, 1:] - points[:, :1]  # [n, k - 1, size]
    along = (steps * residual[:, None]).sum(-1)
    ahead = (along > 0) & found.errors[:, 1:].isfinite()
    length, index = torch.where(ahead, steps.square().sum(-1) / along, torch.inf).min(1)
    rows = torch.arange(len(codes), device=codes.device)
    second = codes[rows, 1 + index]
    size = residual.square().sum(-1)
    beyond = (along[rows, index] - size).clamp_min(0) / size.sqrt()
    beyond = torch.where(length.isfinite(), beyond, torch.inf)
    return Candidates(
        torch.stack([codes[:, 0], second], dim=1), torch.stack([size, beyond.square()], dim=1)
    )
