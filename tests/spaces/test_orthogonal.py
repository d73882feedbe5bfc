"""Hadamard matrices and the transforms made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pvopt.spaces.orthogonal import kronecker_factors, transform
from pvopt.spaces.paley import has_paley, paley

DOUBLE = torch.float64
# Sizes of layers of language models, whose odd part is 1, 3, 5, 7, 9, 27, 35, 37, 43, 125, 171.
LAYERS = [192, 576, 1536, 2304, 5120, 8960, 10944, 11008, 13824, 14336, 18944, 32000, 49152]


@pytest.mark.parametrize("order", [n for n in range(4, 130, 4) if has_paley(n)] + [344])
def test_paley_matrices_are_symmetric_hadamard_matrices(order):
    matrix = paley(order)
    assert (np.abs(matrix) == 1).all()
    assert (matrix == matrix.T).all()
    assert (matrix @ matrix == order * np.eye(order)).all()


def test_orders_of_paley():
    """Hadamard matrices of order 92, 116, 156, 172 and 188 exist, but not by Paley."""
    found = {n for n in range(1, 201) if has_paley(n)}
    assert all(n % 4 == 0 for n in found)
    missing = {n for n in range(4, 201, 4) if max(odd_factors(n), default=1) > 1}
    assert missing == {92, 116, 156, 172, 184, 188}
    with pytest.raises(ValueError, match="order must be one of Paley's, got 92"):
        paley(92)


def odd_factors(size: int) -> list[int]:
    return [f for f in kronecker_factors(size) if f % 2]


@pytest.mark.parametrize("size", LAYERS)
def test_layers_of_language_models_have_hadamard_matrices(size):
    factors = kronecker_factors(size)
    assert math.prod(factors) == size
    assert not odd_factors(size)
    assert max(f for f in factors if f & (f - 1) or f == size) <= 4096 or size & (size - 1) == 0
    entries = transform(torch.eye(1, size, dtype=DOUBLE)).abs()
    torch.testing.assert_close(entries, torch.full_like(entries, size**-0.5))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 8, 9, 12, 18, 20, 24, 26, 36, 60, 92, 100, 144])
def test_transforms_are_orthogonal_symmetric_and_their_own_inverse(size):
    identity = torch.eye(size, dtype=DOUBLE)
    matrix = transform(identity)
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix @ matrix, identity)
    bound = 1.0 if not odd_factors(size) or size == 1 else 2.0
    assert float(matrix.square().max()) * size <= bound + 1e-12
    x = torch.randn(2, 3, size, dtype=DOUBLE, generator=torch.Generator().manual_seed(size))
    torch.testing.assert_close(transform(x), x @ matrix)
    torch.testing.assert_close(transform(transform(x)), x)
    torch.testing.assert_close(transform(x.transpose(0, 1)), transform(x).transpose(0, 1))


@pytest.mark.parametrize("size", [13696, 151936, 525])
def test_what_is_left_of_the_odd_part_takes_hartleys_matrix(size):
    """2^7 107, 2^7 1187 and 525: no Hadamard matrix here, entries up to sqrt(2 / n)."""
    x = torch.randn(1, size, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    assert len(odd_factors(size)) == 1
    torch.testing.assert_close(transform(transform(x)), x)
    one = torch.zeros(1, size, dtype=DOUBLE)
    one[0, size // 3] = 1.0
    assert size**-0.5 < float(transform(one).abs().max()) <= (2 / size) ** 0.5 + 1e-12


def test_the_transform_is_differentiable():
    x = torch.randn(2, 24, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(transform, x.requires_grad_())


def test_sizes_with_a_large_odd_part_are_refused():
    with pytest.raises(ValueError, match="size 50257: its odd part has a factor above 4096"):
        transform(torch.zeros(1, 50257))
