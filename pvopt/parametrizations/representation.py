"""One quantized weight: its settings, codes and values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .layout import GroupLayout

if TYPE_CHECKING:
    from .contract import Parametrization

__all__ = ["Representation", "code_dtype"]


def code_dtype(code_bits: int) -> torch.dtype:
    """Return the integer dtype codes of a width are held in.

    Wider than a byte is int32 rather than uint16, which lacks ``index_put`` in torch.

    Args:
        code_bits: width of one code, 1 to 31.

    Example:
        >>> code_dtype(8), code_dtype(16)
        (torch.uint8, torch.int32)
    """
    return torch.uint8 if code_bits <= 8 else torch.int32


@dataclass(eq=False)
class Representation:
    r"""The discrete codes and continuous values that stand for one dense weight.

    .. math:: w = \mathrm{decode}(z, v)

    Optimizers change ``codes`` and ``values`` in place, so a representation that was handed to
    one always shows the current state.

    Args:
        parametrization: the settings that say how codes and values are to be read.
        codes: ``[rows, cols, codes_per_group]`` integers (uint8 or int32), one tuple per group.
        values: continuous tensors by name, as the parametrization defines them.
        shape: shape of the dense weight.

    Example:
        >>> from pvopt import SharedValues
        >>> rep = SharedValues(2).fit(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> rep.decode()
        tensor([[0., 1.],
                [1., 0.]])
    """

    parametrization: Parametrization
    codes: Tensor
    values: dict[str, Tensor]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        self.shape = tuple(self.shape)
        if self.codes.is_floating_point() or self.codes.dtype == torch.bool:
            raise TypeError(f"codes must be an integer tensor, got {self.codes.dtype}")
        expected = self.parametrization.code_shape(self.shape)
        if tuple(self.codes.shape) != expected:
            raise ValueError(f"codes must have shape {expected}, got {tuple(self.codes.shape)}")
        wanted = self.parametrization.value_shapes(self.shape)
        found = {name: tuple(value.shape) for name, value in self.values.items()}
        if found != wanted:
            raise ValueError(f"values must be tensors of shapes {wanted}, got {found}")

    @property
    def layout(self) -> GroupLayout:
        """How the weight is cut into groups."""
        return self.parametrization.layout(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the values, and so of the decoded weight."""
        return next(iter(self.values.values())).dtype

    @property
    def flat_codes(self) -> Tensor:
        """The codes as ``[num_groups, codes_per_group]``, a view."""
        return self.codes.view(-1, self.codes.shape[-1])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor by name: ``codes`` and ``values.NAME``."""
        yield "codes", self.codes
        for name, value in self.values.items():
            yield f"values.{name}", value

    def decode(self) -> Tensor:
        """Return the dense weight ``[*shape]``, differentiable in the values."""
        return self.parametrization.decode(self)

    def bits_per_weight(self) -> float:
        """Return the bits this object takes per weight: packed codes, values as they are.

        Unlike :meth:`Parametrization.bits_per_weight` it counts values at their present dtype.
        """
        value_bits = 8 * next(iter(self.values.values())).element_size()
        return self.parametrization.bits_per_weight(self.shape, value_bits=value_bits)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Representation:
        """Return a copy on ``device`` with values of ``dtype`` (codes keep theirs)."""
        values = {n: v.to(device=device, dtype=dtype, copy=True) for n, v in self.values.items()}
        codes = self.codes.to(device=device, copy=True)
        return Representation(self.parametrization, codes, values, self.shape)

    def clone(self) -> Representation:
        """Return an independent copy."""
        values = {name: value.clone() for name, value in self.values.items()}
        return Representation(self.parametrization, self.codes.clone(), values, self.shape)

    def copy_(self, other: Representation) -> Representation:
        """Overwrite codes and values in place with those of a representation of equal settings."""
        if other.parametrization != self.parametrization or other.shape != self.shape:
            raise ValueError(
                f"other must be a {self.parametrization} of shape {list(self.shape)}, "
                f"got {other.parametrization} of shape {list(other.shape)}"
            )
        self.codes.copy_(other.codes)
        for name, value in self.values.items():
            value.copy_(other.values[name])
        return self
