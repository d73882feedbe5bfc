"""Weights whose rows are shared out over processes, as ``fully_shard`` does."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement as TensorPlacement

from pvopt.parametrizations.representation import Representation

from .exchange import Channel, Exchange, Sum
from .placement import Placement, Pulled
from .searches import GroupSearch
from .sharded_search import ShardedSearch, Share
from .state import WeightState

__all__ = ["RowShards"]


@dataclass(frozen=True, eq=False)
class RowShards(Placement):
    """Each process of a mesh holds consecutive rows, the first ones ``ceil(rows / processes)``.

    A process without rows works on one block row of zeros, which counts for nothing.

    Args:
        shape: of the weight with all of its rows.
        mesh: of the processes.
        placements: of the weight on the mesh.
        axis: dimension of the mesh that the rows are shared out over.
        out_group: rows of a group.
        like: a tensor of the dtype and device of the parameter.
    """

    shape: tuple[int, ...]
    mesh: DeviceMesh
    placements: tuple[TensorPlacement, ...]
    axis: int
    out_group: int
    like: Tensor
    _known: list[Tensor] = field(default_factory=list, init=False, repr=False)

    wraps = True

    @cached_property
    def channel(self) -> Channel:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Channel(self.mesh.get_group(self.axis), self.mesh.device_type)

    @property
    def chunk(self) -> int:
        """Rows of the first process, and of no other more."""
        return -(-self.shape[0] // self.mesh.size(self.axis))

    def rows_of(self, rank: int) -> tuple[int, int]:
        """Return the first row and the number of rows of a process."""
        first = min(rank * self.chunk, self.shape[0])
        return first, min(self.chunk, self.shape[0] - first)

    @cached_property
    def own(self) -> tuple[int, int]:
        """First row and number of rows of this process."""
        return self.rows_of(self.mesh.get_local_rank(self.axis))

    @property
    def empty(self) -> bool:
        """Whether this process has none of the rows."""
        return self.own[1] == 0

    @property
    def key(self) -> Hashable:
        return self.shape, self.mesh, self.placements

    @cached_property
    def _nothing(self) -> Tensor:
        """What stands for the weight in a process that has none of its rows."""
        return self.like.new_zeros(self.out_group, *self.shape[1:])

    def entries(self, parameter: Tensor) -> Tensor:
        found, known = self.unwrapped(parameter), self._known
        same = known and known[0].data_ptr() == found.data_ptr() and known[0].shape == found.shape
        if not same:  # torch makes another object each time
            known[:] = [found]
        return known[0]

    def unwrapped(self, tensor: Tensor) -> Tensor:
        return self._nothing if self.empty else _rows(tensor)

    def gradient(self, parameter: Tensor) -> Tensor:
        assert parameter.grad is not None
        return torch.zeros_like(self._nothing) if self.empty else _rows(parameter.grad)

    def wrapped(self, rows: Tensor) -> Tensor:
        # Rows of a group are one row of codes and scales: lengths are proportional.
        own, whole = (self.out_group if self.empty else self.own[1]), self.shape[0]
        size = torch.Size((len(rows) * whole // own, *rows.shape[1:]))
        held = rows[:0] if self.empty else rows
        stride = torch.empty(size, device="meta").stride()
        return DTensor.from_local(
            held, self.mesh, self.placements, run_check=False, shape=size, stride=stride
        )

    def taken(self, saved: Tensor) -> Tensor:
        if isinstance(saved, DTensor):
            if saved.placements != self.placements or saved.device_mesh != self.mesh:
                saved = saved.redistribute(self.mesh, self.placements)
            rows = _rows(saved)
            if not self.empty:
                return rows
            each = max(1, len(saved) * self.out_group // self.shape[0])
            return rows.new_zeros(each, *rows.shape[1:])
        first, count = self.own
        if self.empty:
            return torch.zeros_like(saved[: len(saved) * self.out_group // self.shape[0]])
        start, end = (len(saved) * row // self.shape[0] for row in (first, first + count))
        return saved[start:end]

    def cut_(self, rep: Representation) -> None:
        """Let a representation of all rows keep those of this process alone, in place."""
        first, count = self.own
        if not self.empty:
            rep.keep_rows_(first, count)
            return
        rep.keep_rows_(0, self.out_group)
        common = rep.parametrization.common_values or ()
        for tensor in [*rep.codes.values(), *(v for n, v in rep.values.items() if n not in common)]:
            tensor.zero_()

    def total(self, numbers: Tensor) -> Exchange[Tensor]:
        total = yield Sum(self.channel, self.counted(numbers))
        return total

    def own_groups(
        self, rep: Representation, groups: Tensor, changes: Tensor
    ) -> tuple[Tensor, Tensor]:
        first = 0 if self.empty else self.own[0] // self.out_group * rep.layout.cols
        last = rep.layout.num_groups - 1
        own = groups - first
        held = (own >= 0) & (own <= last)
        return own.clamp(0, last), torch.where(held[..., None], changes, 0)

    def copies(self, state: WeightState) -> list[tuple[Channel, list[Tensor]]]:
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        rows = [value for key, value in tensors.items() if state.by_row(key)]
        common = [value for key, value in tensors.items() if not state.by_row(key)]
        others = [axis for axis in range(self.mesh.ndim) if axis != self.axis]
        groups = [Channel(self.mesh.get_group(axis), self.mesh.device_type) for axis in others]
        return [(self.channel, common), *((group, rows) for group in groups)]

    def gathered(self, rep: Representation) -> Representation:
        common = rep.parametrization.common_values or ()

        def whole(tensor: Tensor) -> Tensor:
            gathered = self.wrapped(tensor)
            assert isinstance(gathered, DTensor)
            return gathered.full_tensor().cpu()

        codes = {name: whole(tensor) for name, tensor in rep.codes.items()}
        values = {
            name: tensor.cpu().clone() if name in common else whole(tensor)
            for name, tensor in rep.values.items()
        }
        return Representation(rep.parametrization, codes, values, self.shape, check=False)

    def whole_shape(self, rep: Representation) -> tuple[int, ...]:
        return self.shape

    def size(self, rep: Representation) -> int:
        return self.chunk * math.prod(self.shape[1:])

    def counted(self, numbers: Tensor) -> Tensor:
        """Return what this process adds to a sum over all rows."""
        return torch.zeros_like(numbers) if self.empty else numbers

    def pull(self, rep: Representation, gradients: Sequence[Tensor]) -> Exchange[Pulled | None]:
        common = rep.parametrization.common_values or ()
        found = _exact(rep, gradients) if common else rep.pull(gradients)
        own = [name for name in rep.values if name not in common]
        parts = [found[name].flatten() for name in common]
        parts += [rep.values_of_each(n).double().square().flatten(1).sum(1) for n in own]
        sums = yield Sum(self.channel, self.counted(torch.cat(parts).double()))
        split = sums.split([len(part) for part in parts])
        total = dict(zip([*common, *own], split, strict=True))
        shapes = rep.parametrization.value_shapes(self.shape)
        pulled = {
            name: (total[name].view_as(value) if name in common else found[name]).to(rep.dtype)
            for name, value in rep.values.items()
        }
        sizes = {n: total[n].sqrt() / math.prod(shapes[n]) ** 0.5 for n in own}
        return Pulled(pulled, sizes)

    def search(
        self, rep: Representation, targets: Sequence[Tensor], **settings: Any
    ) -> GroupSearch:
        rank, ranks = self.mesh.get_local_rank(self.axis), self.mesh.size(self.axis)
        each = rep.layout.cols
        share = Share(
            self.channel,
            [self.rows_of(r)[1] // self.out_group * each for r in range(ranks)],
            rank,
        )
        return ShardedSearch(rep, targets, share=share, **settings)


@torch.no_grad()
def _rows(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def _exact(rep: Representation, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the gradients of values in double precision, weight by weight."""
    parts = []
    for member, gradient in zip(rep.members(), gradients, strict=True):
        double = member.with_values({name: v.double() for name, v in member.values.items()})
        parts.append(double.pull([gradient.double()]))
    return {name: torch.cat([part[name] for part in parts]) for name in rep.values}
