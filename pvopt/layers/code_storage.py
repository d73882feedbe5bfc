"""How a quantized layer keeps its codes, and how it multiplies by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from pvopt.parametrizations import AdditiveCodebooks, Incoherent, Parametrization, VectorCodebook
from pvopt.parametrizations.representation import Representation, code_dtype
from pvopt.parametrizations.scalar_grid import ScalarGrid
from pvopt_kernels import matmul, pack_rows, uniform_matmul, unpack_rows
from pvopt_kernels.packing import row_bytes

from .rotation import rotate

__all__ = ["CodeStorage", "storage_of"]


@dataclass(frozen=True)
class CodeStorage(ABC):
    """The codes of a weight as one tensor, without the tensor itself.

    Args:
        parametrization: of the weight.
        shape: ``(out_features, in_features)``.
    """

    parametrization: Parametrization
    shape: tuple[int, int]

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """Shape of the codes of a representation."""
        return self.parametrization.code_shape(self.shape)

    @abstractmethod
    def empty(self, device: torch.device | str | None) -> Tensor:
        """Return a tensor of zeros to hold the codes."""

    @abstractmethod
    def store(self, codes: Tensor) -> Tensor:
        """Return codes ``code_shape`` as they are kept, a copy."""

    @abstractmethod
    def read(self, stored: Tensor) -> Tensor:
        """Return the codes ``code_shape``, in the dtype of representations."""

    @abstractmethod
    def multiply(self, x: Tensor, stored: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Return ``x @ weight.T`` in the dtype of ``x``; differentiable in ``x`` and values."""


class BookCodes(CodeStorage):
    """Codes of codebooks, one or two bytes each, as the kernels read them."""

    @property
    def _dtype(self) -> torch.dtype:
        return torch.uint8 if self.parametrization.code_bits <= 8 else torch.int16

    def empty(self, device: torch.device | str | None) -> Tensor:
        """Return codes of zero."""
        return torch.zeros(self.code_shape, dtype=self._dtype, device=device)

    def store(self, codes: Tensor) -> Tensor:
        """Narrow the codes; those from 32768 on become negative."""
        return codes.to(self._dtype, copy=True)

    def read(self, stored: Tensor) -> Tensor:
        """Widen the codes."""
        return stored.clone() if stored.dtype == torch.uint8 else stored.int() & 0xFFFF

    def multiply(self, x: Tensor, stored: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Multiply without making the weight dense."""
        out_group = self.parametrization.layout(self.shape).out_group
        return matmul(x, stored, values["codebooks"], values["scales"], out_group=out_group)


class PackedCodes(CodeStorage):
    """Codes at their real width, for any parametrization; it decodes the weight in every call."""

    @property
    def _columns(self) -> int:
        _, cols, per_group = self.code_shape
        return cols * per_group

    def empty(self, device: torch.device | str | None) -> Tensor:
        """Return codes of zero."""
        size = row_bytes(self._columns, self.parametrization.code_bits)
        return torch.zeros(self.code_shape[0], size, dtype=torch.uint8, device=device)

    def store(self, codes: Tensor) -> Tensor:
        """Pack the codes row by row."""
        return pack_rows(codes.flatten(1), self.parametrization.code_bits)

    def read(self, stored: Tensor) -> Tensor:
        """Unpack the codes."""
        codes = unpack_rows(stored, self.parametrization.code_bits, self._columns)
        return codes.view(self.code_shape).to(code_dtype(self.parametrization.code_bits))

    def multiply(self, x: Tensor, stored: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Decode, multiply, and decode again in the backward pass: no dense weight is kept."""
        names = list(values)

        def run(x: Tensor, stored: Tensor, *tensors: Tensor) -> Tensor:
            found = dict(zip(names, tensors, strict=True))
            weight = Representation(self.parametrization, self.read(stored), found, self.shape)
            return linear(x, weight.decode().to(x.dtype))

        inputs = (x, stored, *values.values())
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in inputs):
            return run(*inputs)
        # Nothing in it is random; to save and restore the generators would break the graph.
        return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)


class GridCodes(PackedCodes):
    """Codes of scalar grids at their real width, as the kernels read them."""

    def multiply(self, x: Tensor, stored: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Multiply without making the weight dense."""
        assert isinstance(self.parametrization, ScalarGrid)
        step, zero = self.parametrization.step_and_zero(values)
        bits = self.parametrization.code_bits
        if not isinstance(zero, Tensor):
            zero = None if zero == (1 << bits) // 2 else torch.full_like(step, zero)
        return uniform_matmul(x, stored, step, zero, bits=bits, columns=self.shape[1])


class RotatedCodes(CodeStorage):
    """Codes of a rotated weight: the activations are rotated, the weight is not."""

    @property
    def _rotation(self) -> Incoherent:
        assert isinstance(self.parametrization, Incoherent)
        return self.parametrization

    @property
    def _inner(self) -> CodeStorage:
        return storage_of(self._rotation.inner, self.shape)

    def empty(self, device: torch.device | str | None) -> Tensor:
        """As the inner parametrization's."""
        return self._inner.empty(device)

    def store(self, codes: Tensor) -> Tensor:
        """As the inner parametrization's."""
        return self._inner.store(codes)

    def read(self, stored: Tensor) -> Tensor:
        """As the inner parametrization's."""
        return self._inner.read(stored)

    def multiply(self, x: Tensor, stored: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Rotate the inputs, multiply, rotate the outputs back: ``x V' D' U``."""
        seed = self._rotation.seed
        y = self._inner.multiply(rotate(x, seed, 1, False), stored, values)
        return rotate(y, seed, 0, True)


def storage_of(parametrization: Parametrization, shape: tuple[int, int]) -> CodeStorage:
    """Return how a layer keeps codes of a parametrization.

    Args:
        parametrization: any.
        shape: ``(out_features, in_features)``.
    """
    # By exact class: a subclass may decode in another way.
    if type(parametrization) in (AdditiveCodebooks, VectorCodebook):
        return BookCodes(parametrization, shape)
    if type(parametrization) is Incoherent:
        return RotatedCodes(parametrization, shape)
    if isinstance(parametrization, ScalarGrid):
        return GridCodes(parametrization, shape)
    return PackedCodes(parametrization, shape)
