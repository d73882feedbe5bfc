"""Spaces one inside the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from pvopt.core.streams import CodeStream
from pvopt.metrics.contract import Metric

from .contract import SPACES, Space
from .identity import Identity

__all__ = ["Chain"]


@SPACES.register()
@dataclass(frozen=True)
class Chain(Space):
    r"""Several spaces, entered one after the other.

    .. math:: W = \mathrm{leave}_1(\mathrm{leave}_2(\cdots \hat W))

    What the spaces own carries the number of the space in front of its name, ``0.order``.

    Args:
        spaces: at least two, the first one is entered first.

    Raises:
        TypeError: if one is not a space.
        ValueError: if there are fewer than two, or one is an identity or itself a chain.

    Example:
        >>> import torch
        >>> from pvopt import Chain, Padding, Rotation
        >>> space = Chain((Padding(columns=4, free=False), Rotation()))
        >>> space.name, space.inner_shape((2, 3))
        ('pad4[free=False]+had', (2, 4))
        >>> inner = space.enter(torch.ones(2, 3), {})
        >>> torch.allclose(space.leave(inner, {}, (2, 3)), torch.ones(2, 3))
        True
    """

    spaces: tuple[Space, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "spaces", tuple(self.spaces))
        for space in self.spaces:
            if not isinstance(space, Space):
                raise TypeError(f"spaces must hold spaces, got {space!r}")
            if isinstance(space, Chain | Identity):
                raise ValueError(f"spaces must hold neither chains nor identities, got {space}")
        if len(self.spaces) < 2:
            raise ValueError(f"spaces must hold at least two, got {len(self.spaces)}")

    @property
    def name(self) -> str:
        return "+".join(space.name for space in self.spaces)

    @property
    def parts(self) -> tuple[Space, ...]:
        return self.spaces

    def _links(self, shape: tuple[int, ...]) -> Iterator[tuple[str, Space, tuple[int, ...]]]:
        """Yield prefix, space and the shape of what enters it."""
        for number, space in enumerate(self.spaces):
            yield f"{number}.", space, shape
            shape = space.inner_shape(shape)

    def inner_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for space in self.spaces:
            shape = space.inner_shape(shape)
        return shape

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        return {
            prefix + name: stream
            for prefix, space, outer in self._links(shape)
            for name, stream in space.streams(outer).items()
        }

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {
            prefix + name: size
            for prefix, space, outer in self._links(shape)
            for name, size in space.value_shapes(outer).items()
        }

    def check_codes(self, codes: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        for prefix, space, outer in self._links(shape):
            space.check_codes(_below(prefix, codes), outer)

    def start(
        self, weight: Tensor, metric: Metric | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        codes: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for prefix, space, outer in self._links(tuple(weight.shape)):
            own_codes, own_values = space.start(weight, metric)
            owned = {**own_codes, **own_values}
            metric = space.enter_metric(metric, outer, owned)
            weight = space.enter(weight, owned)
            codes |= {prefix + name: tensor for name, tensor in own_codes.items()}
            values |= {prefix + name: tensor for name, tensor in own_values.items()}
        return codes, values

    def enter(self, weight: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        for prefix, space, _ in self._links(tuple(weight.shape)):
            weight = space.enter(weight, _below(prefix, owned))
        return weight

    def leave(self, inner: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        for prefix, space, outer in reversed(list(self._links(shape))):
            inner = space.leave(inner, _below(prefix, owned), outer)
        return inner

    def pull(self, gradient: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        for prefix, space, _ in self._links(tuple(gradient.shape)):
            gradient = space.pull(gradient, _below(prefix, owned))
        return gradient

    def pull_values(
        self, gradient: Tensor, inner: Tensor, owned: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        links = list(self._links(tuple(gradient.shape)))
        outside = []  # the gradient as it comes to each space
        for prefix, space, _ in links:
            outside.append(gradient)
            gradient = space.pull(gradient, _below(prefix, owned))
        found: dict[str, Tensor] = {}
        for (prefix, space, outer), coming in reversed(list(zip(links, outside, strict=True))):
            own = _below(prefix, owned)
            pulled = space.pull_values(coming, inner, own)
            found |= {prefix + name: tensor for name, tensor in pulled.items()}
            inner = space.leave(inner, own, outer)
        return found

    @property
    def on_activations(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(space.on_activations for space in self.spaces)

    def enter_inputs(self, x: Tensor, owned: Mapping[str, Tensor]) -> Tensor:
        for number, space in enumerate(self.spaces):
            x = space.enter_inputs(x, _below(f"{number}.", owned))
        return x

    def leave_outputs(
        self, y: Tensor, owned: Mapping[str, Tensor], shape: tuple[int, ...]
    ) -> Tensor:
        for prefix, space, outer in reversed(list(self._links(shape))):
            y = space.leave_outputs(y, _below(prefix, owned), outer)
        return y

    def enter_metric(
        self, metric: Metric | None, shape: tuple[int, ...], owned: Mapping[str, Tensor]
    ) -> Metric | None:
        for prefix, space, outer in self._links(shape):
            metric = space.enter_metric(metric, outer, _below(prefix, owned))
        return metric


def _below(prefix: str, owned: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what belongs to one space of the chain, by its own names."""
    return {n.removeprefix(prefix): t for n, t in owned.items() if n.startswith(prefix)}
