"""``optimizer.state``: the base optimizer's entries and ours, under the names of a state dict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from .state import WeightState

__all__ = ["PREFIX", "MergedState"]

#: Marks our entries beside the base optimizer's in one flat dictionary per parameter.
PREFIX = "pv."


class MergedState(MutableMapping[Tensor, dict[str, Any]]):
    """What is kept for each parameter; an entry that is set is set where it is kept.

    Args:
        base: the base optimizer's state.
        ours: by ``id`` of the present parameter, what is kept for quantized weights.
        shown: the parameters that have a state.
    """

    def __init__(
        self,
        base: MutableMapping[Tensor, dict[str, Any]],
        ours: Mapping[int, WeightState],
        shown: Iterable[Tensor],
    ) -> None:
        self._base, self._ours = base, ours
        self._shown = {id(p): p for p in shown}

    def __contains__(self, parameter: object) -> bool:
        return id(parameter) in self._shown

    def __getitem__(self, parameter: Tensor) -> dict[str, Any]:
        ours = self._ours.get(id(parameter))
        merged = _Entries(self._base.get(parameter, {}))
        if ours is not None:
            merged.update({PREFIX + key: value for key, value in ours.items()})
        merged.owner = self, parameter
        return merged

    def __setitem__(self, parameter: Tensor, entries: Mapping[str, Any]) -> None:
        theirs = {k: v for k, v in entries.items() if not k.startswith(PREFIX)}
        if theirs or parameter in self._base:
            self._base[parameter] = theirs
        for key, value in entries.items():
            if key.startswith(PREFIX):
                self.set_entry(parameter, key, value)

    def set_entry(self, parameter: Tensor, key: str, value: Any) -> None:
        """Set one entry of a parameter."""
        if not key.startswith(PREFIX):
            self._base[parameter][key] = value
        else:
            self._ours[id(parameter)].assign(key.removeprefix(PREFIX), value)

    def __delitem__(self, parameter: Tensor) -> None:
        del self._base[parameter]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._shown.values())

    def __len__(self) -> int:
        return len(self._shown)

    def __repr__(self) -> str:
        return f"MergedState({dict(self)})"


class _Entries(dict[str, Any]):
    """The entries of one parameter, which write through."""

    owner: tuple[MergedState, Tensor] | None = None

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if self.owner is not None:
            state, parameter = self.owner
            state.set_entry(parameter, key, value)
