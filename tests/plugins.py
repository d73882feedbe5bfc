"""A parametrization, a space, a rounding and a subspace rule that a user might write.

Each is one class, complete, and a line that registers it: whatever is asked of the built-in ones
must work with these. They are registered within :func:`registered` only, as other tests look at
all that is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvopt import (
    PARAMETRIZATIONS,
    Candidates,
    CodeStream,
    Draws,
    FitOptions,
    GroupLayout,
    Metric,
    Parametrization,
    Query,
    Representation,
    Rounding,
    Space,
    Subspace,
)
from pvopt.core.layout import matrix_shape
from pvopt.core.registry import Registry, ShortForm
from pvopt.parametrizations.preparation import prepare_fit
from pvopt.rules.rounding import ROUNDINGS
from pvopt.rules.subspace import SUBSPACES, Decreases
from pvopt.spaces import SPACES


@dataclass(frozen=True, kw_only=True)
class PowersOfTwo(Parametrization):
    r"""Signed powers of two with a scale per row, :math:`w = \pm s\, 2^{-k}`."""

    powers: int = 3

    stacks = True

    def layout(self, shape: tuple[int, ...]) -> GroupLayout:
        return GroupLayout(shape, 1, 1)

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        return {"powers": CodeStream(shape=(*matrix_shape(shape), 1), num_codes=2 * self.powers)}

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"sizes": (matrix_shape(shape)[0], 1)}

    def fit(
        self,
        weight: Tensor,
        *,
        metric: Metric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        weight, _, _ = prepare_fit(weight, metric, generator)
        shape = tuple(weight.shape)
        sizes = weight.reshape(matrix_shape(shape)).abs().amax(1, keepdim=True)
        codes = self.streams(shape)["powers"].zeros(weight.device)
        rep = Representation(self, {"powers": codes}, {"sizes": sizes}, shape)
        query = Query(target=rep.split(weight), rep=rep)
        rep.write_codes_(None, self.candidates(query).codes[:, 0])
        return rep

    def decode_groups(
        self, rep: Representation, groups: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        codes = rep.group_codes(groups) if codes is None else codes
        sizes = rep.values["sizes"].repeat_interleave(rep.layout.cols, 0)
        sizes = sizes if groups is None else sizes[groups]
        return sizes * self._levels(rep.values["sizes"])[codes.long()]

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor([s / 2**k for k in range(self.powers) for s in (1, -1)]).to(like)

    def search(self, query: Query) -> Tensor:
        every = torch.arange(2 * self.powers, device=query.target.device)
        codes = every.expand(len(query.target), -1)[..., None]
        order = self.errors(query, codes).argsort(dim=1, stable=True)
        return order[:, : query.count, None]


@dataclass(frozen=True, kw_only=True)
class PositiveColumns(Space):
    """Columns with their signs changed so that their sums are not negative."""

    by_metric: bool = False

    on_activations = True

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        columns = matrix_shape(shape)[1]
        return {"negative": CodeStream(shape=(columns,), num_codes=2, moves=False)}

    def start(
        self, weight: Tensor, metric: Metric | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self.by_metric and metric is not None:
            weight = weight * metric.diagonal(tuple(weight.shape)).to(weight)
        sums = weight.reshape(matrix_shape(weight.shape)).sum(0)
        return {"negative": (sums < 0).to(torch.uint8)}, {}

    def enter(self, weight: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        matrix = weight.reshape(matrix_shape(weight.shape))
        return (matrix * self._signs(weight, owned)).reshape(weight.shape)

    def leave(self, inner: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        return self.enter(inner, owned)

    def _signs(self, like: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        return 1 - 2 * owned["negative"].to(like)

    def enter_metric(
        self, metric: Metric | None, shape: tuple[int, ...], owned: Mapping[str, Tensor]
    ) -> Metric | None:
        signs = 1.0 - 2.0 * owned["negative"]
        return None if metric is None else metric.scaled(None, signs, shape)

    def enter_inputs(self, x: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        return x * self._signs(x, owned)

    def leave_outputs(
        self, y: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]
    ) -> Tensor:
        return y


@dataclass(frozen=True, kw_only=True)
class Hesitant(Rounding):
    """The nearest code with some probability, the present one otherwise."""

    courage: float = 0.5

    def choose(
        self, candidates: Candidates, current_codes: Tensor, draws: Draws | None = None
    ) -> Tensor:
        draws = Draws.of(draws, current_codes.device)
        draw = draws.uniform(len(current_codes) // draws.count).flatten()
        moves = draw[:, None] < self.courage
        return torch.where(moves, candidates.codes[:, 0], current_codes)


@dataclass(frozen=True, kw_only=True)
class EveryNth(Subspace):
    """Every ``n``-th group."""

    n: int = 3

    def select(
        self,
        magnitudes: Tensor,
        draws: Draws | None = None,
        *,
        ordered: bool = True,
        decreases: Decreases | None = None,
    ) -> Tensor:
        groups = torch.arange(0, magnitudes.shape[1], self.n, device=magnitudes.device)
        order = magnitudes[:, groups].argsort(dim=1, descending=True, stable=True)
        return groups[order]

    def count(self, num_groups: int) -> int:
        return math.ceil(num_groups / self.n)


PLUGINS: list[tuple[Registry[Any], type, ShortForm[Any]]] = [
    (PARAMETRIZATIONS, PowersOfTwo, ShortForm.word("powers", "", example="powers[powers=2]")),
    (SPACES, PositiveColumns, ShortForm.word("positive", "", example="positive+grid:2")),
    (ROUNDINGS, Hesitant, ShortForm.word("hesitant", "", example="hesitant[courage=0.1]")),
    (SUBSPACES, EveryNth, ShortForm.word("nth", "", example="nth[n=5]")),
]


def register() -> None:
    """Register all plugins: what importing a user's module does."""
    for registry, kind, form in PLUGINS:
        registry.register(form)(kind)


@contextmanager
def registered() -> Iterator[None]:
    """Have the plugins registered within a block."""
    register()
    try:
        yield
    finally:
        for registry, kind, _ in PLUGINS:
            registry.forget(kind)
