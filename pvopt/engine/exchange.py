"""What processes tell each other in a step: one collective for all weights at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Channel", "Exchange", "Gather", "ProcessesError", "Sum", "together"]

T = TypeVar("T")


class ProcessesError(RuntimeError):
    """Another process has died, hangs, or has met an error that all have to stop for."""


@dataclass(frozen=True)
class Channel:
    """The processes that hold the rows of a weight.

    Args:
        group: of processes.
        device: kind of the devices that the group connects; other tensors are moved there.
    """

    group: Any
    device: str

    @property
    def size(self) -> int:
        """Number of processes."""
        return dist.get_world_size(self.group)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return sums over the processes, in one collective.

        Args:
            tensors: float64, of equal shapes everywhere.
        """
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        whole = self._there(flat)
        self._call(dist.all_reduce, whole, group=self.group)
        parts = whole.to(flat.device).split([tensor.numel() for tensor in tensors])
        return [part.view(own.shape) for part, own in zip(parts, tensors, strict=True)]

    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return what all processes have, ``[processes, *shape]`` each, in one collective.

        Args:
            tensors: of equal shapes and dtypes everywhere.
        """
        own = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
        flat = torch.cat(own)
        here = self._there(flat)
        every = here.new_empty(self.size, len(here))
        self._call(dist.all_gather_into_tensor, every, here[None], group=self.group)
        parts = every.to(flat.device).split([len(part) for part in own], dim=1)
        return [
            part.contiguous().view(tensor.dtype).view(self.size, *tensor.shape)
            for part, tensor in zip(parts, tensors, strict=True)
        ]

    def _there(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.device.type == self.device else tensor.to(self.device)

    def _call(self, collective: Callable[..., Any], *tensors: Tensor, group: Any) -> None:
        try:
            collective(*tensors, group=group)
        except RuntimeError as error:
            raise ProcessesError(
                f"one of the {self.size} processes that share the weights has died or does not "
                "answer; the step was not taken. Start them again from the last checkpoint"
            ) from error


@dataclass(frozen=True, eq=False)
class Sum:
    """Asks for the sum of a tensor over all processes of a channel.

    Args:
        channel: the processes.
        tensor: float64; sums of it hardly depend on how rows are shared out, once they are rounded.
    """

    channel: Channel
    tensor: Tensor


@dataclass(frozen=True, eq=False)
class Gather:
    """Asks for the tensors of all processes of a channel.

    Args:
        channel: the processes.
        tensor: of one shape and dtype everywhere.
    """

    channel: Channel
    tensor: Tensor


#: Work that asks other processes on its way: yields requests, is sent tensors, returns a result.
Exchange: TypeAlias = Generator[Sum | Gather, Tensor, T]


def together(tasks: Iterable[Exchange[T]]) -> list[T]:
    """Do work that asks other processes: what is asked in the same round takes one collective.

    Tasks that ask nobody are done one after the other, before the next one begins.

    Args:
        tasks: as many, asking alike and in the same order, in every process.

    Returns:
        Their results, in order.

    Example:
        >>> from pvopt.engine.exchange import together
        >>> def task(number):
        ...     yield from ()  # nobody is asked
        ...     return number + 1
        >>> together(task(number) for number in range(3))
        [1, 2, 3]
    """
    results: dict[int, T] = {}
    waiting: list[tuple[int, Exchange[T], Sum | Gather]] = []

    def go_on(place: int, task: Exchange[T], answer: Tensor | None) -> None:
        try:
            request = next(task) if answer is None else task.send(answer)
        except StopIteration as stop:
            results[place] = stop.value
        else:
            waiting.append((place, task, request))

    for place, task in enumerate(tasks):
        go_on(place, task, None)
    while waiting:
        asked, waiting = waiting, []
        kinds: dict[tuple[type, Channel], list[int]] = {}
        for number, (_, _, request) in enumerate(asked):
            kinds.setdefault((type(request), request.channel), []).append(number)
        answers: dict[int, Tensor] = {}
        for (kind, channel), numbers in kinds.items():
            tensors = [asked[number][2].tensor for number in numbers]
            found = channel.sum(tensors) if kind is Sum else channel.gather(tensors)
            answers.update(zip(numbers, found, strict=True))
        for number, (place, task, _) in enumerate(asked):
            go_on(place, task, answers[number])
    return [results[place] for place in sorted(results)]
