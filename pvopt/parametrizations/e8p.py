"""QuIP#'s lattice codebooks: a group of 8 is a scaled point of E8P, or a sum of two points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout, check_divides, matrix_shape
from pvopt.core.registry import ShortForm
from pvopt.core.streams import CodeStream
from pvopt.core.validation import check_bool, check_integer
from pvopt.metrics.contract import Metric
from pvopt_kernels import beam_search, e8_ball, e8p_assign, e8p_decode, smallest

from .codebooks import check_scale_group
from .contract import Parametrization
from .options import FitOptions
from .preparation import prepare_fit
from .query import Query
from .registry import PARAMETRIZATIONS
from .representation import Representation

__all__ = ["E8P"]

_GROUP = 8
# The second stage is divided by this. Mean squared errors on 4096 Gaussian groups, first stage's
# four best points kept: 3 bits 0.0282 (0.0294 with 2.04 and the best point alone, as in QuIP#'s
# code), 4 bits 0.0076 (0.0089 with 3.45).
_RATIO = {3: 1.75, 4: 3.6}
# Root mean square of the unscaled weights that suits the codebook best, on the same groups.
_SPREAD = {2: 1.03, 3: 1.0, 4: 0.91}
# First points that a search keeps, and rounds of codes and scales of a fit.
_USUAL_BEAM = 4
_USUAL_ITERATIONS = 2


@PARAMETRIZATIONS.register(
    ShortForm(
        form="e8p:B[/S]",
        meaning="points of QuIP#'s lattice codebook, 2, 3 or 4 bits; a scale per S inputs (or row)",
        example="e8p:2",
        pattern=r"e8p:?(\d+)(?:/(\d+))?",
        settings=lambda bits, scales: dict(bits=int(bits), scale_group=scales and int(scales)),
        write=lambda p: f"e8p:{p.bits}" + (f"/{p.scale_group}" if p.scale_group else ""),
    )
)
@dataclass(frozen=True, kw_only=True)
class E8P(Parametrization):
    r"""Fixed lattice points with a scale (QuIP#); the only values are the scales.

    .. math:: w_g = s_g\, \big(p(z_{g,1}, z_{g,2}) + r_g / \rho\big)

    ``p`` is one of the 2^16 points of E8P: an absolute vector (first code), signs and a shift
    (second code). ``r`` is nothing for 2 bits, one of 256 points of E8 for 3 bits (third code), and
    a second point of E8P for 4 bits (two more codes); :math:`\rho` is fixed. Made for weights that
    look Gaussian: :class:`pvopt.Rotation` makes them so.

    With 2 bits the V step is exact. With 3 and 4 bits the best first points (``beam_size`` of the
    search options) each get their exactly best second one, and the best sum wins, which need not be
    the best of all.

    Args:
        bits: 2, 3 or 4 per weight.
        scale_group: inputs that share a scale, a multiple of 8; None: a whole row.
        per_tensor: one scale for the whole weight, as in the paper.

    Raises:
        TypeError: if a number is not an integer or ``per_tensor`` not a bool.
        ValueError: if a setting is out of range, ``per_tensor`` has a ``scale_group``, or (on use)
            8 does not divide the columns.

    Example:
        >>> import torch
        >>> from pvopt import E8P
        >>> weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        >>> rep = E8P(bits=2).fit(weight)
        >>> rep.codes["points"].shape, rep.codes["points"].dtype
        (torch.Size([64, 8, 2]), torch.uint8)
        >>> round(float((rep.decode() - weight).square().mean()), 2)
        0.09

    References:
        QuIP# (arXiv 2402.04396), section 4.
    """

    bits: int = 2
    scale_group: int | None = None
    per_tensor: bool = False

    def __post_init__(self) -> None:
        check_integer("bits", self.bits, 2, 4)
        check_scale_group(self.scale_group, "the group size", _GROUP)
        check_bool("per_tensor", self.per_tensor)
        if self.per_tensor and self.scale_group is not None:
            raise ValueError(
                f"scale_group must be None with per_tensor=True, got {self.scale_group}"
            )

    stacks = True
    pull_sums_all = True
    has_zero = False

    @property
    def common_values(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("scales",) if self.per_tensor else ()

    @property
    def usual_beam(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1 if self.bits == 2 else _USUAL_BEAM

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        layout = self.layout(shape)
        # As many bytes for 8 weights as bits for one.
        size = (layout.rows, layout.cols, self.bits)
        return {"points": CodeStream(shape=size, num_codes=256)}

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        check_divides("the group size of E8P", _GROUP, shape)
        if self.scale_group is not None:
            check_divides("scale_group", self.scale_group, shape)
        return GroupLayout(shape, 1, _GROUP)

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        rows, columns = matrix_shape(shape)
        if self.per_tensor:
            return {"scales": (1, 1)}
        return {"scales": (rows, columns // (self.scale_group or columns))}

    def _scales_of(self, rep: Representation, groups: Tensor | None) -> Tensor:
        """Return the scale of each group, ``[n, 1]``."""
        flat = rep.values["scales"].flatten()
        per_scale = rep.num_groups // flat.numel()  # groups are contiguous along a row
        if groups is None:
            return flat.repeat_interleave(per_scale)[:, None]
        return flat[groups.div(per_scale, rounding_mode="floor")][:, None]

    def _points(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the unscaled points ``[..., 8]`` of codes ``[..., codes_per_group]``."""
        points = e8p_decode(codes[..., :2], dtype)
        if self.bits == 2:
            return points
        return points + self._second(codes[..., 2:], dtype) / _RATIO[self.bits]

    def _second(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the points of the second stage, before their division."""
        if self.bits == 4:
            return e8p_decode(codes, dtype)
        ball = e8_ball().to(codes.device, dtype)
        return ball.index_select(0, codes.flatten().int()).view(*codes.shape[:-1], _GROUP)

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Return the scaled points."""
        if codes is None:
            codes = rep.group_codes(groups)
        return self._points(codes, rep.dtype) * self._scales_of(rep, groups)

    def pull(self, rep: Representation, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """Sum the products of gradient and point over the groups of each scale."""
        parts = []
        for member, gradient in zip(rep.members(), gradients, strict=True):
            scales = member.values["scales"]
            points = self._points(member.group_codes(), rep.dtype)
            products = rep.layout.split(gradient.to(rep.dtype).reshape(rep.inner_shape)) * points
            parts.append(products.reshape(scales.numel(), -1).sum(1).view_as(scales))
        return {"scales": torch.cat(parts)}

    def search(self, query: Query) -> Tensor:
        """Exact for 2 bits; otherwise a beam of first points, each with its best second ones."""
        scales = self._scales_of(query.rep, query.groups)
        # In units of the scale; a common factor of a group's errors does not change their order.
        unscaled = torch.where(scales == 0, 0.0, query.target / scales)
        beam = query.options.beam_size or _USUAL_BEAM
        return self._nearest(unscaled, query.count, query.weights, beam)

    def _nearest(self, target: Tensor, k: int, metric: Tensor | None, beam_size: int) -> Tensor:
        """Return codes ``[n, min(k, all), codes_per_group]`` near unscaled targets ``[n, 8]``."""
        if self.bits == 2:
            return e8p_assign(target, k, metric=metric)
        first = e8p_assign(target, max(k, beam_size), metric=metric)  # [n, B, 2]
        n, beams = first.shape[:2]
        residual = target[:, None] - e8p_decode(first, target.dtype)
        spread = None if metric is None else metric.repeat_interleave(beams, 0)
        goal = residual.flatten(0, 1) * _RATIO[self.bits]  # [n * B, 8]
        second = self._nearest_second(goal, k, spread)  # [n * B, K, 1 or 2]
        squares = (goal[:, None] - self._second(second, goal.dtype)).square_()
        errors = (squares if spread is None else squares.mul_(spread[:, None])).sum(-1)
        tries = second.shape[1]
        best = smallest(errors.view(n, beams * tries), min(k, beams * tries))[1]  # [n, k]
        parent = best.div(tries, rounding_mode="floor")
        first = first.gather(1, parent[..., None].expand(-1, -1, 2))
        second = second.view(n, beams * tries, -1)
        second = second.gather(1, best[..., None].expand(-1, -1, second.shape[2]))
        return torch.cat([first, second], dim=2)

    def _nearest_second(self, target: Tensor, k: int, metric: Tensor | None) -> Tensor:
        """Return the exact best codes of the second stage."""
        if self.bits == 4:
            return e8p_assign(target, k, metric=metric)
        start = torch.zeros(len(target), 1, dtype=torch.int64, device=target.device)
        book = e8_ball().to(target)[None]
        return beam_search(target, book, start, k, beam_size=1, order=[0], metric=metric)

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Alternate nearest points and least-squares scales; each scale keeps its best round."""
        weight, weights, _ = prepare_fit(weight, metric, generator)
        options = options or FitOptions()
        rounds = _USUAL_ITERATIONS if options.iterations is None else options.iterations
        beam = options.beam_size or _USUAL_BEAM
        shape = tuple(weight.shape)
        layout, scale_shape = self.layout(shape), self.value_shapes(shape)["scales"]
        groups = layout.split(weight)  # [G, 8]
        importance = None if weights is None else layout.split(weights)
        count = scale_shape[0] * scale_shape[1]

        def per_scale(x: Tensor) -> Tensor:
            return x.view(count, -1).sum(1)

        def per_group(x: Tensor) -> Tensor:
            return x.repeat_interleave(len(groups) // count)[:, None]

        # Starts at other sizes gain little: 0.2 % of the squared error in the worst of three
        # layers of SmolLM2 with five starts, where two rounds from this one gain 0.2 to 0.6 %.
        squares = groups.square().sum(1)
        filled = per_scale((squares > 0).to(squares)).clamp_min(1)  # groups that are not zero
        scale = (per_scale(squares) / (_GROUP * filled)).sqrt() / _SPREAD[self.bits]
        best_error = torch.full_like(scale, torch.inf)
        best_scale = torch.zeros_like(scale)
        best_codes = torch.zeros_like(groups[:, : self.bits], dtype=torch.uint8)
        for _ in range(1 + rounds):
            spread = per_group(scale)  # [G, 1]
            unscaled = torch.where(spread == 0, 0.0, groups / spread)
            codes = self._nearest(unscaled, 1, importance, beam)[:, 0]
            points = self._points(codes, groups.dtype)
            weighted = points if importance is None else points * importance
            energy = per_scale(weighted * points)
            scale = torch.where(energy > 0, per_scale(weighted * groups) / energy, scale)
            squares = (groups - points * per_group(scale)).square_()
            error = per_scale(squares if importance is None else squares.mul_(importance))
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
            best_codes = torch.where(per_group(better), codes.to(torch.uint8), best_codes)
        return Representation(
            self,
            {"points": best_codes.view(layout.rows, layout.cols, self.bits)},
            {"scales": best_scale.view(scale_shape)},
            shape,
        )
