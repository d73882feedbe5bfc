"""A small regression problem with two quantized layers, and exact comparison of nested states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pvopt import AdditiveCodebooks, Parametrization, QuantizedWeights, quantize_


@dataclass
class Setup:
    """A model, its representations and data."""

    model: nn.Sequential
    weights: QuantizedWeights
    inputs: Tensor
    targets: Tensor

    def loss(self, first: int = 0, last: int | None = None) -> Tensor:
        """Return the mean squared error over some of the 16 rows."""
        rows = slice(first, last)
        return (self.model(self.inputs[rows]) - self.targets[rows]).square().mean()

    def backward(self) -> float:
        """Put fresh gradients in place."""
        self.model.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss.item()

    def check_decoded(self) -> None:
        """Assert that every quantized parameter holds its decoded weight, cast to its dtype."""
        for name, rep in self.weights.items():
            parameter = self.weights.parameter(name)
            assert torch.equal(parameter, rep.decode().to(parameter.dtype)), name
            rep.check_codes()


@pytest.fixture(scope="session")
def make_setup() -> Callable[..., Setup]:
    """Return a function that makes the problem, always the same for the same arguments."""

    def make(
        parametrization: Parametrization | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> Setup:
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        weights = quantize_(
            model, parametrization or AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2)
        )
        data = torch.Generator().manual_seed(100)
        inputs = torch.randn(16, 8, generator=data).to(dtype)
        targets = torch.randn(16, 4, generator=data).to(dtype)
        return Setup(model, weights, inputs, targets)

    return make


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    """Return a function that asserts equality of nested states, dtypes and all."""

    def check(left: Any, right: Any, where: str = "") -> None:
        assert type(left) is type(right), where
        if isinstance(left, Tensor):
            assert left.dtype == right.dtype, where
            assert torch.equal(left, right), where
        elif isinstance(left, dict):
            assert set(left) == set(right), where
            for key in left:
                check(left[key], right[key], f"{where}[{key!r}]")
        elif isinstance(left, list | tuple):
            assert len(left) == len(right), where
            for i, (a, b) in enumerate(zip(left, right, strict=True)):
                check(a, b, f"{where}[{i}]")
        else:
            assert left == right, where

    return check
