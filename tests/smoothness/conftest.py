"""Quadratics as torch models, and the nested subsets that a seed draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pvopt.convex import Quadratic, random_quadratic
from pvopt.smoothness.subspaces import NestedSubspaces


class Weights(nn.Module):
    """One vector of float64 weights."""

    def __init__(self, start: np.ndarray) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(start, dtype=torch.float64))


def quadratic_loss(problem: Quadratic) -> Callable[[nn.Module], Tensor]:
    matrix, vector = torch.tensor(problem.A), torch.tensor(problem.b)
    return lambda model: 0.5 * model.x @ matrix @ model.x - vector @ model.x


@pytest.fixture(scope="session")
def make_quadratic() -> Callable[..., tuple[Quadratic, Weights, Callable[[nn.Module], Tensor]]]:
    """Return a function from a seed to a problem, a model at a random start, and its loss."""

    def make(seed: int, dimension: int = 8, condition: float = 100.0):
        generator = np.random.default_rng(seed)
        problem = random_quadratic(dimension, condition, generator)
        model = Weights(generator.standard_normal(dimension))
        return problem, model, quadratic_loss(problem)

    return make


@pytest.fixture(scope="session")
def subsets() -> Callable[..., list[list[Tensor]]]:
    """Return a function to the masks that the first draw of a generator's seed gives."""

    def draw(model: nn.Module, fractions: tuple[float, ...], seed: int) -> list[list[Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        found = NestedSubspaces(list(model.parameters()), fractions, None, generator)
        return [found.masks(i) for i in range(len(fractions))]

    return draw


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)
