"""Trellis-coded weights (QTIP): a tile is a circular string of bits, read by a sliding window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvopt.core.layout import GroupLayout, check_divides, matrix_shape
from pvopt.core.registry import ShortForm
from pvopt.core.streams import CodeStream
from pvopt.core.validation import check_bool, check_integer
from pvopt.metrics.contract import Metric
from pvopt.metrics.diagonal import GroupDiagonal
from pvopt_kernels import trellis_decode, trellis_search, trellis_states

from . import trellis_codes
from .codebooks import check_scale_group
from .contract import Parametrization
from .options import FitOptions
from .preparation import prepare_fit
from .query import Query
from .registry import PARAMETRIZATIONS
from .representation import Representation
from .trellis_orders import MMA, MMA_SIZE, ORDERS, into_tile, out_of_tile
from .trellis_tiles import fitting_tiles
from .trellis_windows import search_windows

__all__ = ["Trellis"]

# Root mean square of the table over that of the unscaled weights, by bits: the least squared error
# on 96 Gaussian tiles at L = 12, in steps of 0.05. One of 1 loses 0.7 % at 1 bit, 7 % at 4.
_SPREAD = {1: 0.9, 2: 1.04, 3: 1.09}
_WIDEST = 1.12
# Rounds of a table's fit, and the weights that it sees: 32 for each of 4096 entries.
_TABLE_ROUNDS = 3
_TABLE_WEIGHTS = 1 << 17
# An entry counts as so many weights of its start.
_PRIOR = 1.0


def _settings(bits: str, *others: str | None) -> dict[str, Any]:
    names = ("state_bits", "code", "order", "out_group", "in_group", "scale_group")
    found: dict[str, Any] = {n: text for n, text in zip(names, others, strict=True) if text}
    if "order" in found:
        found |= {"out_group": MMA_SIZE, "in_group": MMA_SIZE}
    if found.get("scale_group") == "tensor":
        found |= {"scale_group": None, "per_tensor": True}
    numbers = {n: int(found[n]) for n in names if str(found.get(n)).isdigit()}
    return {"bits": int(bits)} | found | numbers


def _write(trellis: Trellis) -> str:
    text = f"trellis:{trellis.bits}l{trellis.state_bits}-{trellis.code}"
    if trellis.order == MMA:
        text += f"@{MMA}"
    elif (trellis.out_group, trellis.in_group) != (64, 2):
        text += f"@{trellis.out_group}x{trellis.in_group}"
    scales = "tensor" if trellis.per_tensor else trellis.scale_group
    return text + (f"/{scales}" if scales else "")


@PARAMETRIZATIONS.register(
    ShortForm(
        form="trellis:B[lL][-CODE][@OxI|@mma][/S|/tensor]",
        meaning="a trellis of B bits, states of L bits; tiles of 64 outputs by 2 inputs (O by I, "
        "or ExLlamaV3's: @mma)",
        example="trellis:2, trellis:3l16-3inst, trellis:2l16@mma/tensor",
        pattern=r"trellis:(\d+)(?:l(\d+))?(?:-(\w+))?(?:@(?:(mma)|(\d+)x(\d+)))?(?:/(\d+|tensor))?",
        settings=_settings,
        write=_write,
    )
)
@dataclass(frozen=True, kw_only=True)
class Trellis(Parametrization):
    r"""Tiles whose weights are read from a circular string of bits by a sliding window (QTIP).

    .. math:: w_t = s\, c(z_t), \qquad z_t = (2^B z_{t-1} + x_t) \bmod 2^L

    Each weight takes ``bits`` fresh bits :math:`x_t` and reads the last ``state_bits``, most of
    which it shares with its neighbours: the precision of a codebook of 2^L entries at the size of
    one of 2^B. The search is the Viterbi algorithm over a whole tile, exact between fixed ends;
    the ends of the circle are found by a first pass. Made for weights that look Gaussian:
    :class:`pvopt.Rotation` makes them so.

    Codes ``c``: the formulas ``mul1``, ``mcg``, ``3inst`` and ``1mad`` (see
    :func:`pvopt_kernels.trellis_table`) have no value to tune; ``hyb`` reads pairs of weights from
    a table of 512 pairs (one state for two weights), ``table`` has a weight for each state. Tables
    are values: the P step tunes them. Mean squared errors on unit Gaussians at 2 bits are 0.073
    with states of 12 bits and 0.070 with 16, where the bound is 0.0625 and E8P has 0.089.

    Tiles may have any shape. The fewer inputs, the better a start in the metric of a layer's inputs
    (:class:`pvopt.starts.GPTQ`), as a search knows the metric's diagonal only; circles of fewer
    than 128 weights lose precision. QTIP and ExLlamaV3 have tiles of 16 x 16; the circle visits
    them row by row, or in the order in which matrix units hold them (``mma``), as in ExLlamaV3.

    Args:
        bits: of a weight, 1 to 8; at most 4 for ``hyb``.
        state_bits: ``L``, at least twice the bits of a step and at most 16. Time and memory of a
            search grow with 2^L.
        code: ``c``, one of ``mul1``, ``mcg``, ``3inst``, ``1mad``, ``hyb``, ``table``.
        scale_group: inputs that share a scale, a multiple of ``in_group``; None: a whole row.
        out_group: rows of a tile.
        in_group: columns of a tile.
        order: in which the circle visits the weights of a tile: ``rows``, or ``mma``, which is
            defined for tiles of 16 x 16.
        per_tensor: one scale for the whole weight.

    Raises:
        TypeError: if a number is not an integer, or ``per_tensor`` not a bool.
        ValueError: if one is out of range, code or order is unknown, settings do not go together, a
            tile has fewer bits than a state, or (on use) tiles do not fit the weight.

    Example:
        >>> import torch
        >>> from pvopt import Trellis
        >>> weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        >>> rep = Trellis(bits=2, state_bits=8).fit(weight)
        >>> rep.codes["symbols"].shape, rep.codes["symbols"].dtype
        (torch.Size([1, 32, 128]), torch.uint8)
        >>> round(float((rep.decode() - weight).square().mean()), 2)
        0.08

    References:
        QTIP (arXiv 2406.11235), sections 2 and 3.
    """

    bits: int = 2
    state_bits: int = 12
    code: str = "mul1"
    scale_group: int | None = None
    out_group: int = 64
    in_group: int = 2
    order: str = "rows"
    per_tensor: bool = False

    stacks = True
    has_windows = True
    # Rounds after the recursion gain next to nothing (benchmarks.starts).
    usual_start = "gptq"
    pull_sums_all = True
    has_zero = False
    # Sequences near the best one differ in a few places: little for a metric to choose from.
    coupled_candidates = 1

    def __post_init__(self) -> None:
        if self.code not in trellis_codes.CODES:
            raise ValueError(
                f"code must be one of {', '.join(trellis_codes.CODES)}, got {self.code!r}"
            )
        per_step = trellis_codes.weights_per_step(self.code)
        check_integer("bits", self.bits, 1, 8 // per_step)
        check_integer("state_bits", self.state_bits, max(2, 2 * self.bits * per_step), 16)
        check_integer("out_group", self.out_group, 1, 256)
        check_integer("in_group", self.in_group, 1, 256)
        check_scale_group(self.scale_group, "in_group", self.in_group)
        tile = self.out_group * self.in_group
        if tile % per_step or tile * self.bits < self.state_bits:
            raise ValueError(
                f"out_group * in_group must be a multiple of {per_step} with at least "
                f"state_bits={self.state_bits} bits, got {self.out_group} * {self.in_group} "
                f"weights of {self.bits} bits"
            )
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")
        if self.order == MMA and not self.out_group == self.in_group == MMA_SIZE:
            raise ValueError(
                f"order={self.order!r} needs tiles of {MMA_SIZE} x {MMA_SIZE}, got out_group="
                f"{self.out_group} and in_group={self.in_group}"
            )
        check_bool("per_tensor", self.per_tensor)
        if self.per_tensor and self.scale_group is not None:
            raise ValueError(
                f"scale_group must be None with per_tensor=True, got {self.scale_group}"
            )

    @property
    def symbol_bits(self) -> int:
        """Fresh bits of a step."""
        return self.bits * trellis_codes.weights_per_step(self.code)

    @property
    def _table_shape(self) -> tuple[int, int] | None:
        return trellis_codes.table_shape(self.code, self.state_bits)

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        layout = self.layout(shape)
        steps = layout.group_size // trellis_codes.weights_per_step(self.code)
        size = (layout.rows, layout.cols, steps)
        return {"symbols": CodeStream(shape=size, num_codes=1 << self.symbol_bits)}

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        if self.scale_group is not None:
            check_divides("scale_group", self.scale_group, shape)
        try:
            return GroupLayout(shape, self.out_group, self.in_group)
        except ValueError as error:
            fitting = fitting_tiles(self, shape)
            if fitting is None:
                raise
            raise ValueError(f"{error}; tiles that fit: {_write(fitting)!r}") from error

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        rows, columns = matrix_shape(shape)
        size = (1, 1) if self.per_tensor else (rows, columns // (self.scale_group or columns))
        scales = {"scales": size}
        table = self._table_shape
        return scales if table is None else {"table": table, **scales}

    def _scales_of(self, rep: Representation, groups: Tensor | None) -> Tensor:
        """Return the scale of each weight, ``[n, group_size]``."""
        scales, layout = rep.values["scales"], rep.layout
        if self.per_tensor:
            if groups is None:
                own = scales.repeat_interleave(layout.num_groups, 0)
            else:
                each = groups.div(layout.num_groups, rounding_mode="floor")
                own = scales.index_select(0, each)
            return own.expand(-1, layout.group_size)
        tiles = scales.view(-1, self.out_group, scales.shape[1])  # block rows of all weights
        per_scale = layout.cols // scales.shape[1]
        columns = tiles.transpose(1, 2).reshape(-1, self.out_group)  # by block row and scale
        if groups is None:
            own = columns.repeat_interleave(per_scale, 0)
        else:
            own = columns.index_select(0, groups.div(per_scale, rounding_mode="floor"))
        return own.repeat_interleave(self.in_group, 1)

    def _tables(self, rep: Representation) -> list[Tensor]:
        """Return what the states stand for: once for all weights, or for each if it is a value."""
        table, scales = rep.values.get("table"), rep.values["scales"]
        if table is None:
            return [trellis_codes.expand(self.code, self.state_bits, None, scales)]
        return [
            trellis_codes.expand(self.code, self.state_bits, own, scales)
            for own in table.chunk(rep.count)
        ]

    def _points(self, rep: Representation, symbols: Tensor) -> Tensor:
        """Return the unscaled weights of symbols ``[n, steps]``, equally many of each weight."""
        tables = self._tables(rep)
        parts = [
            trellis_decode(part, table, symbol_bits=self.symbol_bits)
            for part, table in zip(symbols.chunk(len(tables)), tables, strict=True)
        ]
        points = parts[0] if len(parts) == 1 else torch.cat(parts)
        return into_tile(points, self.order)

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """Return the scaled weights of the tiles."""
        if codes is None:
            codes = rep.group_codes(groups)
        return self._points(rep, codes) * self._scales_of(rep, groups)

    def search(self, query: Query) -> Tensor:
        """Exact given the ends of the circle, which come from a search with free ends.

        With a window all other symbols stay, so that its ends are known and the search is exact;
        there is one candidate then.
        """
        rep = query.rep
        scales = self._scales_of(rep, query.groups)
        largest = scales.abs().amax(1, keepdim=True)
        # In units of the scale; a common factor of a tile's errors does not change their order.
        relative = torch.where(largest == 0, 0.0, scales / largest)
        unscaled = torch.where(scales == 0, 0.0, query.target / scales)
        metric = relative.square() if query.weights is None else relative.square() * query.weights
        unscaled, metric = (out_of_tile(x, self.order) for x in (unscaled, metric))
        window = query.options.window if query.count == 1 else None
        symbols = query.current() if window else None
        tables = self._tables(rep)
        parts, start = [], 0
        for table in tables:  # one for all tiles, or one for as many tiles as a weight has here
            place = slice(start, start + len(unscaled) // len(tables))
            start = place.stop
            if symbols is not None and window is not None:
                steps = -(-window // table.shape[1])
                found = search_windows(
                    unscaled[place],
                    metric[place],
                    symbols[place],
                    table,
                    symbol_bits=self.symbol_bits,
                    window=steps,
                )[:, None]
            else:
                found = trellis_search(
                    unscaled[place],
                    table,
                    query.count,
                    symbol_bits=self.symbol_bits,
                    metric=metric[place],
                )
            parts.append(found)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Fit a table, if it is a value, on some tiles; then nearest codes, least-squares scales.

        Rounds beyond the first search anew at these scales, and keep a tile's codes where that is
        no gain.
        """
        weight, importance, generator = prepare_fit(weight, metric, generator)
        shape = tuple(weight.shape)
        layout, sizes = self.layout(shape), self.value_shapes(shape)
        scale = weight.reshape(*sizes["scales"], -1).square().mean(2).sqrt()
        values = {"scales": scale}
        if self._table_shape is not None:
            table = trellis_codes.start_table(self.code, self.state_bits).to(weight, copy=True)
            values = {"table": table, "scales": scale}
        codes = {name: s.zeros(weight.device) for name, s in self.streams(shape).items()}
        rep = Representation(self, codes, values, shape)
        spread = _SPREAD.get(self.bits, _WIDEST)
        scale.mul_(spread / self._tables(rep)[0].square().mean().sqrt())
        target = layout.split(weight)
        weights = None if importance is None else layout.split(importance)
        if "table" in values:
            some = torch.randperm(layout.num_groups, generator=generator, device=weight.device)
            some = some[: -(-_TABLE_WEIGHTS // layout.group_size)]
            for _ in range(_TABLE_ROUNDS):
                self._fit_table(rep, target, weights, some)
        rounds = 0 if options is None or options.iterations is None else options.iterations
        for number in range(1 + rounds):
            query = Query(target=target, rep=rep, metric=_diagonal(weights))
            found = self.search(query) if number == 0 else self.candidates(query).codes
            rep.write_codes_(None, found[:, 0])
            self._fit_scales(rep, weight, importance)
        return rep

    def _fit_table(
        self, rep: Representation, target: Tensor, weights: Tensor | None, groups: Tensor
    ) -> None:
        """Let each entry be the mean of the weights that nearest codes give it on some tiles."""
        goals = target.index_select(0, groups)
        own = None if weights is None else weights.index_select(0, groups)
        symbols = self.search(Query(target=goals, rep=rep, groups=groups, metric=_diagonal(own)))
        states = trellis_states(
            symbols[:, 0], symbol_bits=self.symbol_bits, state_bits=self.state_bits
        )
        scales, table = self._scales_of(rep, groups), rep.values["table"]
        numbers, signs = trellis_codes.entries(self.code, self.state_bits, table)
        places = numbers[states.flatten().long()]
        pull = scales if own is None else scales * own  # times the gap: the slope of an error
        pull, scales, goals = (out_of_tile(x, self.order) for x in (pull, scales, goals))
        pull, scales, goals = (x.reshape(len(places), -1) for x in (pull, scales, goals))
        goals = goals if signs is None else goals * signs[states.flatten().long()]
        unit = _PRIOR * (pull * scales).mean()
        mass = torch.full_like(table, float(unit)).index_add_(0, places, pull * scales)
        total = (unit * table).index_add_(0, places, pull * goals)
        table.copy_(torch.where(mass > 0, total / mass, table))

    def _fit_scales(self, rep: Representation, weight: Tensor, importance: Tensor | None) -> None:
        """Take the scales of least squared error, codes fixed."""
        scales = rep.values["scales"]
        points = rep.layout.merge(self._points(rep, rep.group_codes()))
        weighted = points if importance is None else points * importance
        blocks = (*scales.shape, -1)
        energy = (weighted * points).reshape(blocks).sum(2)
        product = (weighted * weight).reshape(blocks).sum(2)
        scales.copy_(torch.where(energy > 0, product / energy, scales))


def _diagonal(weights: Tensor | None) -> GroupDiagonal | None:
    return None if weights is None else GroupDiagonal(weights)
