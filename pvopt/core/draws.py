"""Random draws of several weights, each from a generator of its own."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

__all__ = ["SEEDS", "Draws"]

#: The least and the largest seed that generators take.
SEEDS = (-(1 << 63), (1 << 64) - 1)


class Draws:
    """The random draws of one step, for weights one below the other.

    What a weight draws follows from the seed, its name and its number of steps alone: no generator
    needs to be stored, and it does not matter which other weights had a gradient or on which rank
    they are. What all weights share (an order of codebooks) follows from the seed and the step.

    Args:
        generators: one for each weight.
        shared: source of what all weights share; None for the first weight's generator. Functions
            stand for generators that are made when they are first needed.
        matrices: of each weight; they draw from the weight's generator one after the other.

    Example:
        >>> import torch
        >>> from pvopt import Draws
        >>> draws = Draws.of_step(0, ["a", "b"], 3, torch.device("cpu"))
        >>> draws.uniform(5).shape, sorted(draws.permutation(3))
        (torch.Size([2, 5]), [0, 1, 2])
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator | Callable[[], torch.Generator]],
        shared: torch.Generator | Callable[[], torch.Generator] | None = None,
        matrices: int = 1,
    ) -> None:
        self._given = tuple(generators)
        self._matrices = matrices
        self._given_shared = self._given[0] if shared is None else shared

    @classmethod
    def of_step(cls, seed: int, names: Sequence[str], step: int, device: torch.device) -> Draws:
        """Return the draws of some weights in a step.

        Args:
            seed: of the parameter group.
            names: of the weights.
            step: number of steps that the weights have taken.
            device: where the draws are made.
        """
        # Made when something is drawn: most steps draw nothing of most weights.
        own = [partial(_generator, f"{seed}/{name}/{step}", device) for name in names]
        return cls(own, partial(_generator, f"{seed}//{step}", torch.device("cpu")))

    @classmethod
    def of(cls, source: Draws | torch.Generator | None, device: torch.device) -> Draws:
        """Return the draws of one weight from a generator; None seeds a fresh one with 0."""
        if isinstance(source, Draws):
            return source
        return cls([torch.Generator(device).manual_seed(0) if source is None else source])

    @property
    def count(self) -> int:
        """Number of matrices of all weights."""
        return len(self._given) * self._matrices

    @property
    def matrices(self) -> int:
        """Number of matrices of each weight."""
        return self._matrices

    def of_matrices(self, count: int) -> Draws:
        """Return the same draws for weights of ``count`` matrices each."""
        if count == 1:
            return self
        return Draws(self._given, self._given_shared, count)

    def narrow(self, start: int, count: int) -> Draws:
        """Return the draws of some neighbouring weights: drawn there, they are drawn here."""
        if (start, count) == (0, len(self._given)):
            return self
        own = [partial(self._generator, place) for place in range(start, start + count)]
        return Draws(own, lambda: self._shared, self._matrices)

    def _generator(self, place: int) -> torch.Generator:
        return self._generators[place]

    @cached_property
    def _generators(self) -> list[torch.Generator]:
        return [g if isinstance(g, torch.Generator) else g() for g in self._given]

    @cached_property
    def _shared(self) -> torch.Generator:
        if self._given_shared is self._given[0]:
            return self._generators[0]
        given = self._given_shared
        return given if isinstance(given, torch.Generator) else given()

    def uniform(self, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return independent uniform numbers in [0, 1), ``[matrices of all weights, count]``."""
        device = self._generators[0].device
        size = self._matrices * count
        found = torch.empty(len(self._generators), size, dtype=dtype, device=device)
        for row, generator in zip(found, self._generators, strict=True):
            row.uniform_(generator=generator)
        return found.view(self.count, count)

    def permutation(self, count: int) -> list[int]:
        """Return an order of ``count`` things, the same for all weights."""
        source = self._shared
        return torch.randperm(count, generator=source, device=source.device).tolist()

    def picking(self, count: int, places: Tensor) -> Draws:
        """Return draws that are a part of ``count`` ones, as processes with other rows draw them.

        Args:
            count: how many numbers are drawn of each weight, of which a part is taken.
            places: ``[weights, n]`` which ones.
        """
        return _Picked(self, count, places)

    def copy(self) -> Draws:
        """Return draws that repeat what these are going to draw, and leave these alone."""
        own = [generator.clone_state() for generator in self._generators]
        if self._shared is self._generators[0]:
            return Draws(own, matrices=self._matrices)
        return Draws(own, self._shared.clone_state(), self._matrices)


class _Picked(Draws):
    """Some of the numbers that others draw: those of the rows of this process."""

    def __init__(self, every: Draws, count: int, places: Tensor) -> None:
        self._every, self._drawn, self._places = every, count, places

    @property
    def count(self) -> int:
        return self._every.count

    @property
    def matrices(self) -> int:
        return self._every.matrices

    def narrow(self, start: int, count: int) -> Draws:
        places = self._places[start : start + count]
        return _Picked(self._every.narrow(start, count), self._drawn, places)

    def uniform(self, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._every.uniform(self._drawn, dtype).gather(1, self._places[:, :count])

    def permutation(self, count: int) -> list[int]:
        return self._every.permutation(count)

    def copy(self) -> Draws:
        return _Picked(self._every.copy(), self._drawn, self._places)


def _generator(key: str, device: torch.device) -> torch.Generator:
    # Two checksums of different text make 63 bits; manual_seed mixes them further.
    text = key.encode()
    mixed = (zlib.crc32(text) << 31) ^ zlib.crc32(text[::-1] + b"#")
    return torch.Generator(device).manual_seed(mixed)
