"""The contract of spaces: where the groups of a weight live."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from pvopt.core.registry import Registry
from pvopt.core.streams import CodeStream
from pvopt.metrics.contract import Metric

__all__ = ["SPACES", "Space"]

#: Spaces by name.
SPACES: Registry[Space] = Registry("space")

Tensors = Mapping[str, Tensor]


class Space(ABC):
    r"""A linear one-to-one map between a weight and the space in which its groups live.

    .. math:: W = \mathrm{leave}(\hat W), \qquad \hat W = \mathrm{enter}(W)

    Settings alone, a frozen dataclass; what a space owns (a permutation, channel scales) are
    streams of codes and values of the representation. Works with every parametrization, which
    never sees the weight but in its space.
    """

    #: Whether it is the weight's own space, so that nothing is to be done.
    trivial: ClassVar[bool] = False

    #: Whether activations can be mapped in place of the weight, so that a layer stays packed.
    on_activations: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The short name, losslessly; empty for the weight's own space."""
        return SPACES.name(self)

    @property
    def parts(self) -> tuple[Space, ...]:
        """The spaces that are entered one after the other; none for the weight's own."""
        return () if self.trivial else (self,)

    def inner_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a weight in the space.

        Raises:
            ValueError: if weights of this shape have no such space.
        """
        return tuple(shape)

    def streams(self, shape: tuple[int, ...]) -> dict[str, CodeStream]:
        """Return the streams of integers that the space owns, none of which moves."""
        return {}

    def value_shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the continuous tensors that the space owns, by name."""
        return {}

    def check_codes(  # noqa: B027 (a hook, not abstract)
        self, codes: Tensors, shape: tuple[int, ...]
    ) -> None:
        """Raise a ValueError unless the integers that the space owns make sense.

        Args:
            codes: in the range of their streams, by name.
            shape: of the weight.
        """

    def start(
        self, weight: Tensor, metric: Metric | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Choose what the space owns for a weight.

        Args:
            weight: ``[*shape]``, at least float32.
            metric: of the start, or None.

        Returns:
            Codes and values by name.
        """
        return {}, {}

    @abstractmethod
    def enter(self, weight: Tensor, owned: Tensors) -> Tensor:
        """Return a weight in the space, ``[*inner_shape]``.

        Args:
            weight: ``[*shape]`` floating.
            owned: codes and values of the space, by name.
        """

    @abstractmethod
    def leave(self, inner: Tensor, owned: Tensors, shape: tuple[int, ...]) -> Tensor:
        """Return the weight of one in the space; differentiable in the space's values.

        Args:
            inner: ``[*inner_shape]`` floating.
            owned: codes and values of the space, by name.
            shape: of the weight.

        Returns:
            ``[*shape]``.
        """

    def pull(self, gradient: Tensor, owned: Tensors) -> Tensor:
        """Pull a gradient back through :meth:`leave`: its adjoint, :meth:`enter` for isometries.

        Args:
            gradient: ``[*shape]``, with respect to the weight.
            owned: codes and values of the space, by name.

        Returns:
            ``[*inner_shape]``, with respect to the weight in the space.
        """
        return self.enter(gradient, owned)

    def pull_values(self, gradient: Tensor, inner: Tensor, owned: Tensors) -> dict[str, Tensor]:
        """Return the gradients of the space's own values.

        Args:
            gradient: ``[*shape]``, with respect to the weight.
            inner: ``[*inner_shape]``, the weight in the space.
            owned: codes and values of the space, by name.
        """
        return {}

    @abstractmethod
    def enter_metric(
        self, metric: Metric | None, shape: tuple[int, ...], owned: Tensors
    ) -> Metric | None:
        r"""Return the metric in the space: :math:`\|\hat W\|_{\hat D} = \|W\|_D`.

        It is exact unless the space's settings name what they leave out.

        Args:
            metric: of the weight; None for the Euclidean.
            shape: of the weight.
            owned: codes and values of the space, by name.

        Raises:
            TypeError: if the metric has no such form in the space.
        """

    def enter_inputs(self, x: Tensor, owned: Tensors) -> Tensor:
        r"""Map the inputs of a layer so that it can multiply by the weight in the space.

        .. math:: x\, W' = \mathrm{leave\_outputs}(\mathrm{enter\_inputs}(x)\, \hat W')

        Args:
            x: ``[..., columns]``.
            owned: codes and values of the space, by name.

        Returns:
            ``[..., columns of the weight in the space]``; differentiable.
        """
        raise NotImplementedError(f"{type(self).__name__} does not map activations")

    def leave_outputs(self, y: Tensor, owned: Tensors, shape: tuple[int, ...]) -> Tensor:
        """Map the products with the weight in the space to the layer's outputs.

        Args:
            y: ``[..., rows of the weight in the space]``.
            owned: codes and values of the space, by name.
            shape: of the weight, a matrix.

        Returns:
            ``[..., rows]``; differentiable.
        """
        raise NotImplementedError(f"{type(self).__name__} does not map activations")
