"""The fast transform against the matrix of its definition."""

from __future__ import annotations

import pytest
import torch

from pvopt_kernels import hadamard

DOUBLE = torch.float64
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
ORDERS = [1, 2, 4, 32, 64, 128, 512, 1024]


def matrix(order: int) -> torch.Tensor:
    """(-1)^popcount(i & j) / sqrt(n), entry by entry."""
    rows = [[(-1.0) ** (i & j).bit_count() for j in range(order)] for i in range(order)]
    return torch.tensor(rows, dtype=DOUBLE) / order**0.5


@pytest.mark.parametrize("order", ORDERS)
def test_hadamard_equals_the_matrix(order, generator):
    wanted = matrix(order)
    found = hadamard(torch.eye(order, dtype=DOUBLE))
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)
    x = torch.randn(3, 5, order, generator=generator(0), dtype=DOUBLE)
    torch.testing.assert_close(hadamard(x), x @ wanted.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hadamard(hadamard(x)), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 8, 128, 1024])
def test_every_implementation(kind, order, ragged, precision, generator, guard, device):
    x = torch.randn(ragged, order, generator=generator(1)).to(precision.dtype)
    found = hadamard(guard(x.to(device)))
    assert found.dtype == precision.dtype
    assert found.shape == x.shape
    precision.close(found, hadamard(x.double()), scale=4.0)


@pytest.mark.parametrize("order", [2048, 4096, 8192])
def test_sizes_of_several_factors(kind, order, generator, guard, device):
    """Passes of the Triton kernel along strided axes; rows do not fill its last blocks."""
    x = torch.randn(3, order, generator=generator(4))
    found = hadamard(guard(x.to(device)))
    torch.testing.assert_close(found.cpu(), hadamard(x.double()).float(), rtol=1e-4, atol=1e-4)


def test_any_memory_layout(kind, device, generator):
    x = torch.randn(64, 6, generator=generator(2)).to(device)
    torch.testing.assert_close(hadamard(x.T), hadamard(x.T.contiguous()))
    found = hadamard(x.T[:, None])
    assert found.is_contiguous()
    assert hadamard(x[:, 0]).shape == (64,)


def test_it_is_differentiable(generator):
    x = torch.randn(2, 16, generator=generator(3), dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(hadamard, (x,))


@pytest.mark.parametrize("shape", [(3,), (2, 12), (), (4, 0)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(ValueError, match="last axis of x must be a power of two"):
        hadamard(torch.ones(shape))


def test_it_passes_the_checks_of_custom_operators(generator, monkeypatch):
    monkeypatch.undo()  # the checks have their own way with memory
    x = torch.randn(3, 8, generator=generator(4), requires_grad=True)
    torch.library.opcheck(torch.ops.pvopt.hadamard.default, (x,), test_utils=CHECKS)
