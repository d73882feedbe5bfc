"""Weights of an optimizer that others have changed: noticed before a step, taken up or refused."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .agreement import WeightsChangedError, differs, record, same_samples
from .bindings import Binding
from .consent import any_process
from .exchange import Channel, Exchange

__all__ = ["note_written", "settle", "untouched"]


def note_written(bindings: Sequence[Binding]) -> None:
    """Remember what weights look like whose decoded weights were just written."""
    entries = [binding.placement.entries(binding.parameter) for binding in bindings]
    seen = record([binding.seen for binding in bindings], entries)
    for binding, new in zip(bindings, seen, strict=True):
        binding.seen, binding.versions = new, binding.present_versions()


def untouched(bindings: Sequence[Binding]) -> list[Tensor] | None:
    """Tell whether weights are as they were written, as far as can be known without waiting.

    Returns:
        Scalars of bool, one for each device and dtype, that all must hold; None if a weight is
        known to have been written since, or nobody knows.
    """
    if not all(binding.untouched for binding in bindings):
        return None
    return same_samples([binding.seen for binding in bindings if binding.seen is not None])


def settle(bindings: Sequence[Binding], channels: Sequence[Channel] = ()) -> Exchange[None]:
    """Look closely at weights that may have been changed.

    Where codes and values went along, the optimizer starts again at them: its latent weights and
    moments belong to other ones.

    Args:
        bindings: that may have been changed.
        channels: the processes that hold other rows of them.

    Raises:
        WeightsChangedError: for weights that are not their decoded weights; nothing was changed.
    """
    wrong, moved = [False] * len(bindings), [False] * len(bindings)
    for place, binding in enumerate(bindings):
        entries, seen = binding.placement.entries(binding.parameter), binding.seen
        same = seen is not None and seen.same_entries(entries)
        if same and binding.untouched:
            continue
        wrong[place] = differs(entries, binding.rep)
        moved[place] = not same and (seen is not None or binding.state.step == 0)
    flags = yield from any_process(channels, [*wrong, *moved])
    names = [b.name for b, flag in zip(bindings, flags, strict=False) if flag]
    if names:
        raise WeightsChangedError.of(names)
    for binding, flag in zip(bindings, flags[len(bindings) :], strict=True):
        if flag:
            binding.state.start_again()
