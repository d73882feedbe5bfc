"""The rows: which format is started how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from pvopt import Rotation, Scheme, Trellis, UniformGrid, parse_scheme
from pvopt.starts import Start, parse_start

__all__ = ["ROWS", "Row"]

Spec = dict[str, Scheme]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        name: as ``--formats`` takes it.
        start: its short name.
        build: schemes of a model's linear layers, by pattern.
        recipes: that tune it, where tuned points are asked for.
    """

    name: str
    start: str
    build: Callable[[nn.Module], Spec]
    recipes: tuple[str, ...] = ()

    def parsed_start(self) -> Start:
        """Return the start."""
        return parse_start(self.start)


def _grid(bits: int) -> Callable[[nn.Module], Spec]:
    """Groups of 128 inputs where 128 divides them, of 64 elsewhere."""

    def build(model: nn.Module) -> Spec:
        return {
            name: Scheme(
                UniformGrid(bits=bits, group_size=128 if layer.in_features % 128 == 0 else 64)
            )
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear) and name.rpartition(".")[2] != "lm_head"
        }

    return build


def _trellis(bits: int) -> Callable[[nn.Module], Spec]:
    """Tiles of 192 outputs by one input where that fits, of fewer outputs elsewhere."""

    def build(model: nn.Module) -> Spec:
        found = {}
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and name.rpartition(".")[2] != "lm_head":
                rows = next(n for n in (192, 128, 64, 32, 16) if layer.out_features % n == 0)
                tile = Trellis(bits=bits, out_group=rows, in_group=max(1, 128 // rows))
                found[name] = Scheme(tile, Rotation())
        return found

    return build


def _named(text: str) -> Callable[[nn.Module], Spec]:
    return lambda model: {"*": parse_scheme(text)}


_TUNED = ("subspace_pv_ste",)
# The most telling ones first: an interrupted run keeps what it has.
ROWS = {
    row.name: row
    for row in (
        Row("rtn-4", "fit", _grid(4)),
        Row("gptq-4", "gptq", _grid(4)),
        Row("aqlm-2x8g8", "aqlm", _named("2x8g8"), _TUNED),
        Row("gptq-2", "gptq", _grid(2), _TUNED),
        Row("gptq-3", "gptq", _grid(3)),
        Row("rtn-2", "fit", _grid(2)),
        Row("rtn-3", "fit", _grid(3)),
        Row("vq-2", "aqlm", _named("vq:8g4"), _TUNED),
        Row("e8p-2", "aqlm", _named("had+e8p:2"), _TUNED),
        Row("trellis-2", "gptq", _trellis(2), ("subspace_pv_ste", "continuous_only", "ste")),
        Row("trellis-3", "gptq", _trellis(3), _TUNED),
        Row("kmeans-2x8g8", "fit", _named("2x8g8")),
        Row("ternary", "gptq", _named("ternary:g64"), _TUNED),
        Row("binary", "gptq", _named("binary:g64")),
        Row("aqlm-1x8g8", "aqlm", _named("1x8g8")),
        Row("aqlm-3x8g8", "aqlm", _named("3x8g8")),
        Row("e8p-3", "aqlm", _named("had+e8p:3")),
        Row("e8p-4", "aqlm", _named("had+e8p:4")),
        *(
            Row(f"{name}-{start}", start, _named(form))
            for name, form in (("2:4", "2:4"), ("50%", "sparse:50%"))
            for start in ("fit", "obs", "iterative-obs")
        ),
        Row("aqlm-1x16g8", "aqlm", _named("1x16g8")),
    )
}
