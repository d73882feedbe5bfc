"""How much memory tensors take at most while some work runs."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["MemoryWatch"]


class MemoryWatch(TorchDispatchMode):
    """Counts the bytes of all tensors that operations of torch make while it is active.

    Tensors that have shapes alone count as if they had memory.

    Attributes:
        present: bytes of those that are still there.
        peak: the most that there were at once.

    Example:
        >>> import torch
        >>> from pvopt.planning.watch import MemoryWatch
        >>> with MemoryWatch() as watch:
        ...     total = (torch.ones(1000) + 1).sum()
        >>> watch.peak, watch.present
        (8000, 4)
    """

    def __init__(self) -> None:
        super().__init__()
        self.present = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):  # what others made; operations may return it
            if isinstance(leaf, Tensor):
                self._note(leaf, counts=False)
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._note(leaf, counts=True)
        return found

    def _note(self, tensor: Tensor, *, counts: bool) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known:
            return
        size = storage.nbytes() if counts else 0
        self._known.add(place)
        self.present += size
        self.peak = max(self.peak, self.present)
        weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.present -= size
