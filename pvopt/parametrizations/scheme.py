"""A parametrization, the space it works in and a view of the weight: all of its settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pvopt.core.streams import CodeStream
from pvopt.core.views import VIEWS, MatrixView, plain_view
from pvopt.metrics.contract import Metric
from pvopt.metrics.matrices import WeightMetric, matrix_metrics
from pvopt.spaces.chain import Chain
from pvopt.spaces.contract import SPACES, Space
from pvopt.spaces.identity import identity

from .preparation import check_range, prepare_weight
from .registry import PARAMETRIZATIONS

if TYPE_CHECKING:
    from .contract import Parametrization
    from .options import FitOptions
    from .representation import Representation

__all__ = ["SPACE", "Scheme", "as_scheme", "parse_scheme"]

#: What the names of codes and values that a space owns begin with.
SPACE = "space."


@dataclass(frozen=True)
class Scheme:
    """What a weight is quantized to: a parametrization, in a space.

    Args:
        parametrization: how codes and values make groups of weights.
        space: where the groups live.
        view: how the weight's tensor holds matrices; parametrization and space work on each of
            them by itself.

    Example:
        >>> from pvopt import E8P, Rotation, Scheme
        >>> scheme = Scheme(E8P(bits=2), Rotation())
        >>> scheme.name, round(scheme.bits_per_weight((1536, 576)), 3)
        ('had+e8p:2', 2.028)
    """

    parametrization: Parametrization
    space: Space = field(default_factory=identity)
    view: MatrixView = field(default_factory=plain_view)

    @property
    def name(self) -> str:
        """The short name, losslessly; the inverse of :func:`parse_scheme`."""
        parts = [self.view.name, self.space.name, PARAMETRIZATIONS.name(self.parametrization)]
        return "+".join(part for part in parts if part)

    def __str__(self) -> str:
        text = str(self.parametrization)
        if not self.space.trivial:
            text += f" in {self.space}"
        return text if self.view.plain else f"{text} of {self.view}"

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a ValueError unless weights of a shape can be quantized so."""
        self.parametrization.layout(self.space.inner_shape(self.view.matrix_shape(shape)))

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        """Return the streams of codes of a weight, of the parametrization and of the space.

        Those of the weight's matrices lie one below the other.
        """
        matrix, count = self.view.matrix_shape(shape), self.view.count(shape)
        own = self.parametrization.streams(self.space.inner_shape(matrix))
        own = own | {SPACE + n: s for n, s in self.space.streams(matrix).items()}
        if self.view.plain:
            return own
        return {n: replace(s, shape=(count * s.shape[0], *s.shape[1:])) for n, s in own.items()}

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the values of a weight, of the parametrization and of the space.

        Those of the weight's matrices lie one below the other.
        """
        matrix, count = self.view.matrix_shape(shape), self.view.count(shape)
        own = self.parametrization.value_shapes(self.space.inner_shape(matrix))
        own = own | {SPACE + n: s for n, s in self.space.value_shapes(matrix).items()}
        return {name: (count * size[0], *size[1:]) for name, size in own.items()}

    def fit(
        self,
        weight: Tensor,
        *,
        metric: WeightMetric | None = None,
        options: FitOptions | None = None,
        generator: torch.Generator | None = None,
    ) -> Representation:
        """Start a representation close to a dense weight.

        Args:
            weight: ``[*shape]``, floating; computed in at least float32.
            metric: in which distance, for the weight or for each of its matrices; None for the
                Euclidean.
            options: how hard to try.
            generator: source of every random draw; None seeds a fresh one with 0.

        Returns:
            Codes and values of the weight.

        Raises:
            TypeError: if the metric does not exist in the space.
            ValueError: if the groups do not fit the shape, or the weight is not finite.
        """
        return self.start_inside(
            weight,
            metric,
            lambda inner, own: self.parametrization.fit(
                inner, metric=own, options=options, generator=generator
            ),
        )

    def start_inside(
        self,
        weight: Tensor,
        metric: WeightMetric | None,
        start: Callable[[Tensor, Metric | None], Representation],
    ) -> Representation:
        """Start a representation by a function that works in the space and need not know it.

        The space chooses what it owns, weight and metric enter it, and what the function returns
        leaves it; for each matrix of the weight by itself.

        Args:
            weight: ``[*shape]``, floating.
            metric: in which distance, for the weight or for each of its matrices; None for the
                Euclidean.
            start: is given the weight in the space (contiguous, finite, at least float32) and the
                metric there, and returns a representation of the parametrization alone.

        Returns:
            Codes and values of the weight.

        Raises:
            TypeError: if the weight is not floating, or the metric does not exist in the space.
            ValueError: if weight, metric and groups do not fit, or the weight is not finite.
        """
        dense, weight = weight, prepare_weight(weight)
        shape = tuple(weight.shape)
        self.check(shape)
        if not (self.parametrization.has_zero or bool(weight.any())):
            raise ValueError(
                f"weight must not be all zero: {self.parametrization} is zero by scales of 0 "
                "alone, which hardly move again. Take a parametrization that has a level of 0, or "
                "train the layer first"
            )
        parts = [
            self._start_matrix(matrix.contiguous(), own, start)
            for matrix, own in zip(
                self.view.matrices(weight), matrix_metrics(metric, self.view, shape), strict=True
            )
        ]
        rep = parts[0] if self.view.plain else parts[0].joined(parts, self.view, shape)
        check_range(rep, dense)
        return rep

    def _start_matrix(
        self,
        weight: Tensor,
        metric: Metric | None,
        start: Callable[[Tensor, Metric | None], Representation],
    ) -> Representation:
        shape = tuple(weight.shape)
        codes, values = self.space.start(weight, metric)
        owned = {**codes, **values}
        inside = self.space.enter_metric(metric, shape, owned)
        rep = start(self.space.enter(weight, owned).contiguous(), inside)
        return rep.within(self.space, shape, codes, values)

    def bits_per_weight(self, shape: tuple[int, ...], *, value_bits: int = 16) -> float:
        r"""Return the true storage per weight: codes, codebooks, scales, what the space owns.

        .. math:: \frac{\sum_s \mathrm{bits}(s) + b_v \sum_v |v|}{d}

        over streams of codes and values of ``b_v`` bits each.

        Args:
            shape: of the dense weight.
            value_bits: bits that one stored value takes.
        """
        codes = sum(stream.stored_bits for stream in self.streams(shape).values())
        sizes = self.value_shapes(shape).values()
        return (codes + value_bits * sum(math.prod(s) for s in sizes)) / math.prod(shape)

    def to_json(self) -> dict[str, Any]:
        """Describe the scheme by names and settings."""
        described = {
            "parametrization": PARAMETRIZATIONS.to_json(self.parametrization),
            "space": SPACES.to_json(self.space),
        }
        return described if self.view.plain else {**described, "view": VIEWS.to_json(self.view)}

    @classmethod
    def from_json(cls, description: Any) -> Scheme:
        """Rebuild a scheme from its description.

        Raises:
            ValueError: if a class is unknown or settings do not fit it.

        Example:
            >>> from pvopt import Scheme, Ternary
            >>> scheme = Scheme(Ternary(group_size=64))
            >>> Scheme.from_json(scheme.to_json()) == scheme
            True
        """
        needed = {"parametrization", "space"}
        if not isinstance(description, dict) or description.keys() - {"view"} != needed:
            raise ValueError(f"a scheme needs parametrization and space, got {description!r}")
        return cls(
            PARAMETRIZATIONS.from_json(description["parametrization"]),
            SPACES.from_json(description["space"]),
            VIEWS.from_json(description["view"]) if "view" in description else plain_view(),
        )


def as_scheme(settings: Parametrization | Scheme) -> Scheme:
    """Return a scheme; a parametrization by itself works in the weight's own space.

    Example:
        >>> from pvopt import Scheme, Ternary
        >>> from pvopt.parametrizations import as_scheme
        >>> as_scheme(Ternary()) == Scheme(Ternary())
        True
    """
    return settings if isinstance(settings, Scheme) else Scheme(settings)


def parse_scheme(text: str) -> Scheme:
    """Make a scheme of its short name: a view and spaces, if any, and a parametrization.

    Args:
        text: the parts joined by ``+``, such as ``"2x8g8"`` or ``"had+e8p:2"``. Settings that a
            form does not spell out follow it in brackets: ``"had[seed=3]+e8p:2"``.

    Returns:
        The scheme.

    Raises:
        ValueError: if no form fits, or a number is out of range.

    Example:
        >>> from pvopt import parse_scheme
        >>> parse_scheme("grid:2g64s").parametrization
        UniformGrid(bits=2, group_size=64, symmetric=True, integer_zeros=False)
        >>> parse_scheme("had+e8p:3").space
        Rotation(seed=0, block=None)
    """
    spaces: list[Space] = []
    view, rest = plain_view(), text.strip()
    head, plus, tail = rest.partition("+")
    if plus and VIEWS.matches(head):
        view, rest = VIEWS.parse(head), tail
    while True:
        head, plus, tail = rest.partition("+")
        if not plus or not SPACES.matches(head):
            break
        spaces.append(SPACES.parse(head))
        rest = tail
    return Scheme(PARAMETRIZATIONS.parse(rest), joined(spaces), view)


def joined(spaces: Iterable[Space]) -> Space:
    """Return one space of several, entered one after the other."""
    found = tuple(spaces)
    if not found:
        return identity()
    return found[0] if len(found) == 1 else Chain(found)
