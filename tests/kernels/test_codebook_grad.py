"""codebook_grad against a loop over the groups in float64, for every implementation."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from quantized_weights import FORMATS, Books, draw_books, read_codes

from pvopt_kernels import codebook_grad


def expected_grads(weight: Books, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    codes = read_codes(weight.codes)
    books, scales = (t.double().cpu().numpy() for t in weight.args[1:])
    slope = gradient.double().cpu().numpy()
    rows, cols, num = codes.shape
    out, size = weight.out_group, books.shape[2]
    in_group = size // out
    of_books, of_scales = np.zeros_like(books), np.zeros_like(scales)
    for i in range(rows):
        for j in range(cols):
            block = slope[i * out : (i + 1) * out, j * in_group : (j + 1) * in_group].reshape(size)
            s = j // (cols // scales.shape[1])
            for m in range(num):
                code = codes[i, j, m]
                of_books[m, code] += scales[i, s] * block
                of_scales[i, s] += books[m, code] @ block
    return torch.from_numpy(of_books), torch.from_numpy(of_scales)


def draw_gradient(generator, weight: Books, dtype: torch.dtype) -> torch.Tensor:
    shape = weight.dense().shape
    return torch.randn(shape, generator=generator).to(weight.codes.device, dtype)


# A program per entry: codebooks of 256 would take the interpreter seconds each.
SMALL = [name for name in FORMATS if FORMATS[name].get("entries", 16) <= 16]


@pytest.mark.parametrize("name", SMALL)
def test_codebook_grad_equals_float64(kind, name, precision, generator, guard, device):
    weight = draw_books(generator(1), device, precision.dtype, **FORMATS[name])
    gradient = draw_gradient(generator(2), weight, precision.dtype)
    arguments = map(guard, (gradient, *weight.args))
    found = codebook_grad(*arguments, out_group=weight.out_group)
    for grad, expected, value in zip(
        found, expected_grads(weight, gradient), weight.args[1:], strict=True
    ):
        assert grad.dtype == value.dtype
        precision.close(grad, expected, scale=float(expected.abs().max()))


@pytest.mark.parametrize("rows", [0, 1, 41])
def test_codebook_grad_of_ragged_rows(kind, rows, generator, guard, device):
    weight = draw_books(generator(3), device, torch.float32, rows=rows, cols=3, entries=3)
    gradient = draw_gradient(generator(4), weight, torch.float32)
    books, scales = codebook_grad(*map(guard, (gradient, *weight.args)))
    expected = expected_grads(weight, gradient)
    torch.testing.assert_close(books.double().cpu(), expected[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scales.double().cpu(), expected[1], rtol=1e-5, atol=1e-4)


def test_long_runs_are_cut_into_parts(kind, generator, device, monkeypatch):
    """95 groups of entry 0 in 4 parts of 24, the last one short; one of entry 1, none of 2."""
    if kind == "triton":
        module = importlib.import_module("pvopt_kernels.triton.codebook_grad")
        monkeypatch.setattr(module, "_PART", 8)
    weight = draw_books(
        generator(5), device, torch.float32, rows=6, cols=16, in_group=2, books=1, entries=1
    )
    weight.codebooks = torch.randn(1, 3, 2, generator=generator(6)).to(device)
    weight.codes[4, 7] = 1
    gradient = draw_gradient(generator(7), weight, torch.float32)
    books, scales = codebook_grad(gradient, *weight.args)
    expected = expected_grads(weight, gradient)
    torch.testing.assert_close(books.double().cpu(), expected[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scales.double().cpu(), expected[1], rtol=1e-5, atol=1e-4)
    assert books[0, 2].tolist() == [0, 0]


def test_the_same_bits_at_every_call(kind, generator, device):
    """Sums of mixed magnitude: another order would show."""
    weight = draw_books(generator(8), device, torch.float32, rows=8, cols=40, entries=4)
    gradient = draw_gradient(generator(9), weight, torch.float32)
    gradient *= 10.0 ** torch.randint(-6, 6, gradient.shape, generator=generator(10)).to(device)
    first = codebook_grad(gradient, *weight.args)
    for _ in range(2):
        again = codebook_grad(gradient, *weight.args)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_half_precision_is_summed_in_single(kind, device):
    """Added up in bfloat16 a thousand ones would stop at 256."""
    codes = torch.zeros(8, 128, 1, dtype=torch.uint8, device=device)
    books = torch.ones(1, 1, 1, dtype=torch.bfloat16, device=device)
    scales = torch.ones(8, 1, dtype=torch.bfloat16, device=device)
    gradient = torch.ones(8, 128, dtype=torch.bfloat16, device=device)
    found = codebook_grad(gradient, codes, books, scales)
    assert found[0].item() == 1024
    assert found[1].flatten().tolist() == [128.0] * 8


def test_errors(generator):
    weight = draw_books(generator(13), torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match=r"gradient must have shape \[5, 48\], got \[5, 40\]"):
        codebook_grad(torch.zeros(5, 40), *weight.args)
    with pytest.raises(TypeError, match="gradient must be one of"):
        codebook_grad(torch.zeros(5, 48, dtype=torch.int64), *weight.args)
