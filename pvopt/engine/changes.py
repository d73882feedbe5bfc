"""Weights of an optimizer that others have changed: noticed before a step, taken up or refused."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .agreement import WeightsChangedError, differs, record, same_samples
from .bindings import Binding

__all__ = ["note_written", "settle", "untouched"]


def note_written(bindings: Sequence[Binding]) -> None:
    """Remember what weights look like whose decoded weights were just written."""
    seen = record([b.seen for b in bindings], [b.parameter for b in bindings])
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


def settle(bindings: Sequence[Binding]) -> None:
    """Look closely at weights that may have been changed.

    Where codes and values went along, the optimizer starts again at them: its latent weights and
    moments belong to other ones.

    Args:
        bindings: that may have been changed.

    Raises:
        WeightsChangedError: for weights that are not their decoded weights; nothing was changed.
    """
    wrong: list[str] = []
    moved: list[Binding] = []
    for binding in bindings:
        parameter, seen = binding.parameter, binding.seen
        same = seen is not None and seen.same_entries(parameter)
        if same and binding.untouched:
            continue
        if differs(parameter, binding.rep):
            wrong.append(binding.name)
        elif not same and (seen is not None or binding.state.step == 0):
            moved.append(binding)
    if wrong:
        raise WeightsChangedError.of(wrong)
    for binding in moved:
        binding.state.start_again()
