"""Views of tensors that a step asks for again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["ViewMemory"]

T = TypeVar("T")


class ViewMemory:
    """What was made of some tensors, as long as these are the same: each view is a call of torch.

    Example:
        >>> import torch
        >>> from pvopt.parametrizations.view_memory import ViewMemory
        >>> memory, x = ViewMemory(), torch.zeros(4)
        >>> with torch.no_grad():
        ...     view = memory.get("pairs", [x], lambda: x.view(2, 2))
        ...     memory.get("pairs", [x], lambda: x.view(2, 2)) is view
        True
    """

    def __init__(self) -> None:
        self._made: dict[object, tuple[Sequence[Tensor], object]] = {}

    def get(self, key: object, of: Sequence[Tensor], make: Callable[[], T]) -> T:
        """Return what was made before, or make it.

        Args:
            key: under which it is kept.
            of: the very tensors that it depends on.
            make: makes it.
        """
        modes = torch.is_grad_enabled() or torch.is_inference_mode_enabled()
        if modes or torch.compiler.is_compiling():
            return make()
        found = self._made.get(key)
        if found is None or any(a is not b for a, b in zip(found[0], of, strict=True)):
            found = self._made[key] = of, make()
        return found[1]  # type: ignore[return-value]

    def copy(self) -> ViewMemory:
        """Return another memory of the same views."""
        other = ViewMemory()
        other._made = dict(self._made)
        return other
