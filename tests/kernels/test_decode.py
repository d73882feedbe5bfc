"""decode against float64 NumPy, for every implementation."""

from __future__ import annotations

import pytest
import torch
from quantized_weights import FORMATS, draw_books

from pvopt_kernels import decode


@pytest.mark.parametrize("name", FORMATS)
def test_decode_equals_float64(kind, name, precision, generator, guard, device):
    weight = draw_books(generator(1), device, precision.dtype, **FORMATS[name])
    found = decode(*map(guard, weight.args), out_group=weight.out_group)
    assert found.dtype == precision.dtype
    assert found.is_contiguous()
    precision.close(found, weight.dense())


def test_decode_of_ragged_rows(kind, ragged, generator, guard, device):
    weight = draw_books(generator(2), device, torch.float32, rows=ragged, cols=3)
    found = decode(*map(guard, weight.args))
    assert found.shape == (ragged, 24)
    torch.testing.assert_close(found.cpu(), weight.dense().float())


def test_any_memory_layout(kind, generator, device):
    weight = draw_books(generator(3), device, torch.float32, rows=6)
    expected = weight.dense()[::2].float()
    codes = weight.codes.permute(2, 1, 0).contiguous().permute(2, 1, 0)[::2]
    books = weight.codebooks.mT.contiguous().mT
    scales = weight.scales.expand(-1, 3)[::2]
    torch.testing.assert_close(decode(codes, books, scales).cpu(), expected)


def test_no_groups(kind, device):
    books = torch.ones(2, 4, 8, device=device)
    none = torch.zeros(3, 0, 2, dtype=torch.uint8, device=device)
    assert decode(none, books, torch.ones(3, 1, device=device)).shape == (3, 0)


def test_gradients(generator, device):
    weight = draw_books(
        generator(4), device, torch.float64, rows=3, in_group=2, out_group=2, scales=3, entries=5
    )
    values = [v.requires_grad_() for v in weight.args[1:]]
    assert torch.autograd.gradcheck(
        lambda books, scales: decode(weight.codes, books, scales, out_group=2), values
    )


def test_errors(generator, monkeypatch):
    weight = draw_books(generator(7), torch.device("cpu"), torch.float32)
    codes, books, scales = weight.args
    with pytest.raises(TypeError, match="codes must be one of"):
        decode(codes.float(), books, scales)
    with pytest.raises(TypeError, match=r"scales must be torch\.float32 like codebooks"):
        decode(codes, books, scales.half())
    with pytest.raises(ValueError, match=r"codebooks must have shape \[2, K, g\]"):
        decode(codes, books[:1], scales)
    with pytest.raises(ValueError, match=r"scales must have shape \[5, S\], got \[4, 1\]"):
        decode(codes, books, scales[:4])
    with pytest.raises(ValueError, match="divides the 6 groups of a row, got 4"):
        decode(codes, books, scales.expand(-1, 4))
    with pytest.raises(ValueError, match="out_group must divide the 8 weights of a group, got 3"):
        decode(codes, books, scales, out_group=3)
    with pytest.raises(ValueError, match="codebooks on meta"):
        decode(codes, books.to("meta"), scales.to("meta"))
    monkeypatch.setenv("PVOPT_KERNELS_DEBUG", "1")
    with pytest.raises(IndexError, match=r"codes must be in 0 \.\. 14, got 0 \.\. 15"):
        decode(codes, books[:, :15], scales)
    wide = books.repeat(1, 16, 1)
    assert decode(codes.to(torch.int8) - 100, wide, scales).shape == (5, 48)
