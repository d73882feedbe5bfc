"""matmul against float64 products with the dense weight, for every implementation."""

from __future__ import annotations

import pytest
import torch
from quantized_weights import FORMATS, draw_books

from pvopt_kernels import matmul

SMALL = ["2x8g8", "ragged", "wide", "blocks of scales", "16 bits"]


def draw_x(generator, device, dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator).to(device, dtype)


def check(precision, found, x, dense):
    """Weights and activations are exact; the product of their sizes bounds the rounding."""
    expected = x.double().cpu() @ dense
    assert found.dtype == x.dtype
    assert found.shape == expected.shape
    scale = float((x.double().cpu().abs() @ dense.abs()).max()) if expected.numel() else 1.0
    precision.close(found, expected, scale=max(1.0, scale / 4))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 20])
@pytest.mark.parametrize("name", SMALL)
def test_matmul_equals_float64(kind, name, tokens, transposed, precision, generator, guard, device):
    weight = draw_books(generator(1), device, precision.dtype, **FORMATS[name])
    dense = weight.dense()
    x = draw_x(generator(2), device, precision.dtype, tokens, dense.shape[not transposed])
    arguments = map(guard, (x, *weight.args))
    found = matmul(*arguments, out_group=weight.out_group, transposed=transposed)
    check(precision, found, x, dense if transposed else dense.T)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 33])
def test_ragged_rows(kind, tokens, transposed, ragged, generator, guard, device):
    weight = draw_books(generator(3), device, torch.float32, rows=ragged, cols=3)
    dense = weight.dense()
    x = draw_x(generator(4), device, torch.float32, tokens, dense.shape[not transposed])
    found = matmul(*map(guard, (x, *weight.args)), transposed=transposed)
    expected = x.double().cpu() @ (dense if transposed else dense.T)
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_deep_sums_are_split(kind, transposed, generator, guard, device):
    """So few outputs that the Triton kernels cut the sum into parts, the last one ragged."""
    rows, cols = (300, 2) if transposed else (2, 150)
    weight = draw_books(generator(5), device, torch.float32, rows=rows, cols=cols, scales=cols // 2)
    dense = weight.dense()
    x = draw_x(generator(6), device, torch.float32, 3, dense.shape[not transposed])
    found = matmul(*map(guard, (x, *weight.args)), transposed=transposed)
    expected = x.double().cpu() @ (dense if transposed else dense.T)
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-5, atol=2e-4)


def test_no_tokens_and_no_columns(kind, generator, device):
    weight = draw_books(generator(7), device, torch.float32)
    assert matmul(torch.ones(0, 48, device=device), *weight.args).shape == (0, 5)
    codes, books, scales = weight.args
    for tokens in (1, 2):
        found = matmul(torch.ones(tokens, 0, device=device), codes[:, :0], books, scales)
        assert found.tolist() == [[0.0] * 5] * tokens


def test_leading_dimensions_memory_layouts_and_mixed_dtypes(kind, generator, device):
    weight = draw_books(generator(8), device, torch.float32)
    x = draw_x(generator(9), device, torch.float16, 48, 3, 2).permute(2, 1, 0)
    found = matmul(x, *weight.args)
    assert found.dtype == torch.float16
    expected = x.double().cpu() @ weight.dense().T
    torch.testing.assert_close(found.double().cpu(), expected, rtol=2e-2, atol=5e-2)
    one = matmul(x[0, 0], *weight.args)
    assert one.shape == (5,)
    torch.testing.assert_close(one.double().cpu(), expected[0, 0], rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("block", [1 << 24, 24])
def test_gradients(block, transposed, generator, device, monkeypatch):
    """In one block of rows, and in blocks of one row of groups."""
    import sys

    monkeypatch.setattr(sys.modules["pvopt_kernels.ops.matmul"], "GRADIENT_BLOCK", block)
    options = {"rows": 3, "cols": 4, "in_group": 2, "out_group": 2, "scales": 2, "entries": 5}
    weight = draw_books(generator(10), device, torch.float64, **options)
    x = draw_x(generator(11), device, torch.float64, 2, 6 if transposed else 8)
    inputs = [t.requires_grad_() for t in (x, *weight.args[1:])]
    assert torch.autograd.gradcheck(
        lambda x, books, scales: matmul(
            x, weight.codes, books, scales, out_group=2, transposed=transposed
        ),
        inputs,
    )


def test_gradients_of_kernels_are_those_of_the_dense_path(kind, generator, device):
    weight = draw_books(generator(12), device, torch.float32, rows=9, scales=2)
    x = draw_x(generator(13), device, torch.float32, 4, 48).requires_grad_()
    values = [v.requires_grad_() for v in weight.args[1:]]
    slope = draw_x(generator(14), device, torch.float32, 4, 9)
    found = torch.autograd.grad(matmul(x, *weight.args), (x, *values), slope)
    double = [t.detach().double().requires_grad_() for t in (x, *values)]
    product = matmul(double[0], weight.codes, *double[1:])
    expected = torch.autograd.grad(product, double, slope.double())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


def test_only_what_is_asked_for_is_computed(generator, device, monkeypatch):
    weight = draw_books(generator(15), device, torch.float32)
    x = torch.ones(2, 48, device=device, requires_grad=True)
    monkeypatch.setenv("PVOPT_KERNELS", "reference")
    from pvopt_kernels.reference import codebook_grad

    monkeypatch.setattr(codebook_grad, "codebook_grad", None)
    matmul(x, *weight.args).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(
        x.grad[0].double().cpu(), weight.dense().sum(0), atol=1e-4, rtol=1e-4
    )


def test_compiled(generator, device, monkeypatch):
    monkeypatch.setenv("PVOPT_KERNELS", "reference")
    weight = draw_books(generator(18), device, torch.float32)
    x = draw_x(generator(19), device, torch.float32, 2, 3, 48).requires_grad_()
    values = [v.requires_grad_() for v in weight.args[1:]]

    def run(x, codes, books, scales):
        return matmul(x * 2, codes, books, scales).square()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (run, compiled):
        y = function(x, weight.codes, *values)
        results.append([y, *torch.autograd.grad(y.sum(), (x, *values))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_errors(generator):
    weight = draw_books(generator(20), torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match=r"x must have shape \[tokens, 48\], got \[3, 40\]"):
        matmul(torch.zeros(3, 40), *weight.args)
    with pytest.raises(ValueError, match=r"x must have shape \[tokens, 5\], got \[3, 48\]"):
        matmul(torch.zeros(3, 48), *weight.args, transposed=True)
    with pytest.raises(ValueError, match=r"x must have shape \[tokens, 48\], got \[1, 1\]"):
        matmul(torch.tensor(1.0), *weight.args)
    with pytest.raises(TypeError, match="x must be one of"):
        matmul(torch.zeros(3, 48, dtype=torch.int32), *weight.args)
    with pytest.raises(ValueError, match="x on meta"):
        matmul(torch.zeros(3, 48, device="meta"), *weight.args)
