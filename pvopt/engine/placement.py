"""Which rows of a weight a process holds: the one place where processes differ."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from pvopt.parametrizations.representation import Representation

from .exchange import Channel, Exchange
from .searches import GroupSearch
from .stacked_search import StackedSearch
from .state import WeightState

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["WHOLE", "Placement", "Pulled", "Whole", "is_sharded", "local"]


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Tell whether processes share out a tensor, as ``fully_shard`` does."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """Return the entries of a tensor that this process holds; all of them unless it is sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


@dataclass(frozen=True, eq=False)
class Pulled:
    """The gradients of values, of all rows of the weights.

    Args:
        gradients: by name, ``count`` times as long as those of one weight.
        sizes: root mean square ``[count]`` of the values that this process holds some rows of, by
            name; the size of others is that of the tensor itself.
    """

    gradients: Mapping[str, Tensor]
    sizes: Mapping[str, Tensor] = field(default_factory=dict)


class Placement(ABC):
    """Which rows of a weight this process holds, and what it asks those that hold the others.

    Codes, values and all that is kept beside them are those of its own rows. What rows have in
    common goes through here, and through nothing else.

    Attributes:
        channel: the processes that hold the other rows; None if there are none.
        wraps: whether the model's tensors are others than those of the rows.
    """

    channel: Channel | None = None
    wraps: bool = False

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """What weights have in common that can be stacked in every process."""

    @abstractmethod
    def entries(self, parameter: Tensor) -> Tensor:
        """Return the rows of the parameter, to be read and written; always the same object."""

    @abstractmethod
    def gradient(self, parameter: Tensor) -> Tensor:
        """Return the rows of its gradient, dense."""

    @abstractmethod
    def wrapped(self, rows: Tensor) -> Tensor:
        """Return rows as the model's tensors are; they share their memory."""

    @abstractmethod
    def unwrapped(self, tensor: Tensor) -> Tensor:
        """Return the rows of a tensor that is as the model's are: the inverse of wrapping."""

    @abstractmethod
    def taken(self, saved: Tensor) -> Tensor:
        """Return the rows of a tensor of all rows, however it is held."""

    @abstractmethod
    def whole_shape(self, rep: Representation) -> tuple[int, ...]:
        """Return the shape of the weight with all of its rows."""

    @abstractmethod
    def size(self, rep: Representation) -> int:
        """Return how many entries a process has at most, the same number in every process."""

    @abstractmethod
    def pull(self, rep: Representation, gradients: Sequence[Tensor]) -> Exchange[Pulled | None]:
        """Pull dense gradients back to the values of all rows.

        Args:
            rep: weights of this placement.
            gradients: the rows of each gradient.

        Returns:
            The gradients of the values; None where nobody is asked, and they can be found when
            they are needed.
        """

    @abstractmethod
    def search(
        self, rep: Representation, targets: Sequence[Tensor], **settings: Any
    ) -> GroupSearch:
        """Return the Euclidean search of new codes; ``settings`` as in :class:`StackedSearch`."""

    def total(self, numbers: Tensor) -> Exchange[Tensor]:
        """Return the sums over all rows of what this process has added up over its own."""
        yield from ()
        return numbers

    def own_groups(
        self, rep: Representation, groups: Tensor, changes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return some groups of all rows as groups of this process; changes of others are 0.

        Args:
            rep: of the rows of this process.
            groups: ``[matrices, n]``, numbers among the groups of all rows.
            changes: ``[matrices, n, group_size]`` of these groups.
        """
        return groups, changes

    @abstractmethod
    def copies(self, state: WeightState) -> list[tuple[Channel, list[Tensor]]]:
        """Return what is kept for a weight that others hold copies of, and these processes."""

    @abstractmethod
    def gathered(self, rep: Representation) -> Representation:
        """Return a copy on the CPU with all rows; every process has to ask."""

    def num_groups(self, rep: Representation) -> int:
        """Return the number of groups of one weight, with all of its rows."""
        own = rep.num_groups // rep.count
        return own * math.prod(self.whole_shape(rep)) // math.prod(rep.shape)


class Whole(Placement):
    """This process holds the weight; others that do have a copy of their own."""

    def __reduce__(self) -> str:
        return "WHOLE"  # copies are the same

    @property
    def key(self) -> Hashable:
        return None

    def entries(self, parameter: Tensor) -> Tensor:
        return parameter

    def gradient(self, parameter: Tensor) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        return gradient.to_dense() if gradient.is_sparse else gradient

    def wrapped(self, rows: Tensor) -> Tensor:
        return rows

    def unwrapped(self, tensor: Tensor) -> Tensor:
        return tensor

    def taken(self, saved: Tensor) -> Tensor:
        return saved

    def whole_shape(self, rep: Representation) -> tuple[int, ...]:
        return rep.shape

    def size(self, rep: Representation) -> int:
        return math.prod(rep.shape)

    def pull(self, rep: Representation, gradients: Sequence[Tensor]) -> Exchange[Pulled | None]:
        yield from ()

    def search(
        self, rep: Representation, targets: Sequence[Tensor], **settings: Any
    ) -> GroupSearch:
        return StackedSearch(rep, targets, **settings)

    def copies(self, state: WeightState) -> list[tuple[Channel, list[Tensor]]]:
        if not (dist.is_available() and dist.is_initialized()):
            return []
        tensors = [value for value in state.values() if isinstance(value, Tensor)]
        return [(Channel(None, state.rep.device.type), tensors)]

    def gathered(self, rep: Representation) -> Representation:
        return rep.to("cpu")


#: Where weights are that are not shared out.
WHOLE = Whole()
