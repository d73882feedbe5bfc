"""How many calls of torch a step makes, and how often the host has to wait for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Calls", "calls_of"]

# Operations whose result, or the size of it, the host must know before it can go on.
_WAITS = {
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "repeat_interleave.Tensor",
    "unique_consecutive",
    "unique_dim",
}


@dataclass(frozen=True)
class Calls:
    """What was asked of torch.

    Args:
        total: operations, those of this library counted as one each.
        views: those among them that only look at memory in another way.
        synchronisations: those that a host waits for; on a CPU they cost nothing.
        by_name: number of calls by operation.
    """

    total: int
    views: int
    synchronisations: int
    by_name: dict[str, int]


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.views = self.waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace != "profiler":  # the marks that every optimizer's step sets
            self.names[str(func)] += 1
            self.views += func.is_view
            self.waits += bool(_WAITS & {func.overloadpacket.__name__, _short(func)})
            self.waits += _masks(func, args)
        return func(*args, **(kwargs or {}))


def _short(func: Any) -> str:
    return str(func).partition(".")[2]


def _masks(func: Any, args: Any) -> bool:
    """Whether an operation takes the entries where a mask is true: how many is not known."""
    if func.overloadpacket.__name__ not in ("index", "index_put_", "index_put"):
        return False
    return any(isinstance(i, Tensor) and not i.dtype.is_signed for i in args[1] if i is not None)


def calls_of(work: Callable[[], object]) -> Calls:
    """Count the calls of torch while some work runs.

    Args:
        work: has run once before, so that nothing is prepared here.

    Example:
        >>> import torch
        >>> x = torch.ones(2, 3)
        >>> found = calls_of(lambda: float((2 * x).view(-1).sum()))
        >>> found.total, found.views, found.synchronisations
        (4, 1, 1)
    """
    with _Counter() as counter:
        work()
    total = counter.names.total()
    return Calls(total, counter.views, counter.waits, dict(counter.names.most_common()))
