"""How a layer keeps codes, and how it multiplies by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from .representation import Representation

if TYPE_CHECKING:
    from .contract import Parametrization

__all__ = ["Storage"]


@dataclass(frozen=True)
class Storage:
    """The codes of a matrix as packed tensors, without the tensors themselves.

    Here each stream is packed at its real width, for any parametrization, and a product decodes
    the whole weight. A parametrization with kernels of its own overrides both.

    Args:
        parametrization: of the weight.
        shape: ``(out_features, in_features)`` in its space.

    Example:
        >>> import torch
        >>> from pvopt import SharedValues
        >>> rep = SharedValues(num_values=3).fit(torch.tensor([[0.0, 1.0, 4.0, 1.0]]))
        >>> storage = rep.parametrization.storage((1, 4))
        >>> storage.multiply(torch.ones(1, 4), storage.store(rep.codes), rep.values)
        tensor([[6.]])
    """

    parametrization: Parametrization
    shape: tuple[int, int]

    def empty(self, device: torch.device | str | None) -> dict[str, Tensor]:
        """Return tensors of zeros to hold the codes, by stream."""
        streams = self.parametrization.streams(self.shape)
        return {
            name: torch.zeros(stream.stored_bytes, dtype=torch.uint8, device=device)
            for name, stream in streams.items()
        }

    def store(self, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return codes as they are kept: copies, by stream."""
        streams = self.parametrization.streams(self.shape)
        return {name: stream.pack(codes[name]) for name, stream in streams.items()}

    def read(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the codes as representations have them."""
        streams = self.parametrization.streams(self.shape)
        return {name: stream.unpack(stored[name], check=False) for name, stream in streams.items()}

    def multiply(
        self, x: Tensor, stored: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> Tensor:
        """Return ``x @ weight.T`` in the dtype of ``x``; differentiable in ``x`` and values."""
        codes = self.read(stored)
        rep = Representation(self.parametrization, codes, dict(values), self.shape, check=False)
        return linear(x, rep.decode().to(x.dtype))

    @property
    def decodes(self) -> bool:
        """Whether a product makes the weight dense, so that it is worth forgetting it again."""
        return True
