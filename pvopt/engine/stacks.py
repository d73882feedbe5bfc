"""Which weights are worked on together, and how many of them at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pvopt.core.heap import release_free_memory
from pvopt.parametrizations.representation import Representation

from .bindings import Binding

__all__ = ["Stack", "stacks_of"]

# Bytes that codes and values leave behind when they move into a stack, as holes of some KiB.
_WORTH_RELEASING = 1 << 23


@dataclass(eq=False)
class Stack:
    """Weights of one shape and scheme, whose codes and values lie in common tensors.

    Args:
        bindings: the weights, in the order of the stack.
    """

    bindings: Sequence[Binding]
    rep: Representation = field(init=False)
    _views: list[Tensor] = field(init=False)
    _parts: dict[tuple[int, int], Representation] = field(init=False)

    def __post_init__(self) -> None:
        self._build()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy stacks its own weights: pickle does not keep what tensors share.
        return Stack, (self.bindings,)

    def _build(self) -> None:
        self.rep = Representation.stack([binding.rep for binding in self.bindings])
        self._views = self._present()
        self._parts = {}
        for binding in self.bindings:
            binding.state.complete()

    def _present(self) -> list[Tensor]:
        return [tensor for binding in self.bindings for _, tensor in binding.rep.tensors()]

    def refresh(self) -> None:
        """Stack the weights anew if one has got other tensors since."""
        present = self._present()
        if any(a is not b for a, b in zip(present, self._views, strict=True)):
            self._build()

    def part(self, start: int, count: int) -> Representation:
        """Return some neighbouring weights as one representation."""
        if (start, count) not in self._parts:
            self._parts[start, count] = self.rep.narrow(start, count)
        return self._parts[start, count]

    def runs(
        self, key: Callable[[int], Hashable | None], at_once: Callable[[int], float]
    ) -> Iterator[tuple[int, int]]:
        """Cut the stack into neighbours with equal keys, nearly equally many and not too many.

        Args:
            key: of the weight in a place; None leaves the weight out.
            at_once: how many entries the weights together have at most, by one of them.

        Yields:
            First place and number of weights.
        """
        keys = [key(place) for place in range(len(self.bindings))]
        for found, places in itertools.groupby(range(len(keys)), keys.__getitem__):
            run = list(places)
            if found is None:
                continue
            size = self.bindings[0].placement.size(self.bindings[0].rep)
            most = max(1, int(at_once(run[0]) / size))
            pieces = -(-len(run) // most)
            ends = [len(run) * piece // pieces for piece in range(pieces + 1)]
            for start, end in itertools.pairwise(ends):
                yield run[start], end - start


def stacks_of(bindings: Sequence[Binding]) -> list[Stack]:
    """Stack the weights that can be worked on together.

    Args:
        bindings: every weight once.

    Returns:
        Stacks that hold each weight once.
    """
    alike: dict[Any, list[Binding]] = {}
    for binding in bindings:
        rep = binding.rep
        key: tuple[Any, ...] = (rep.scheme, rep.shape, rep.device, rep.dtype)
        key += (binding.placement.key,)
        key += tuple((name, codes.dtype) for name, codes in rep.codes.items())
        if not (rep.parametrization.stacks and rep.space.trivial):
            key += (binding.name,)
        alike.setdefault(key, []).append(binding)
    stacks = [Stack(members) for members in alike.values()]
    left = sum(t.nbytes for stack in stacks for _, t in stack.rep.tensors() if stack.rep.count > 1)
    if left >= _WORTH_RELEASING:
        release_free_memory()
    return stacks
