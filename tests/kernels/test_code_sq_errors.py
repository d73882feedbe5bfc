"""code_sq_errors against float64 NumPy, for every implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pvopt_kernels.ops import code_sq_errors


def draw(source, shape, books, entries, scales, dtype=torch.float32):
    target = torch.randn(shape, generator=source).to(dtype)
    codes = torch.randint(entries, (shape[0], books), generator=source)
    codebooks = torch.randn(books, entries, shape[1], generator=source).to(dtype)
    return target, codes, codebooks, torch.rand(scales, generator=source).to(dtype)


def expected_errors(target, codes, codebooks, scales) -> torch.Tensor:
    target, codebooks, scales = (x.double().cpu().numpy() for x in (target, codebooks, scales))
    errors = []
    for g, (goal, row) in enumerate(zip(target, codes.tolist(), strict=True)):
        total = np.sum([codebooks[m, code] for m, code in enumerate(row)], axis=0)
        errors.append(np.sum((goal - scales[g * len(scales) // len(target)] * total) ** 2))
    return torch.tensor(np.array(errors, dtype=np.float64))


@pytest.mark.parametrize("shape", [(1, 1), (6, 8), (12, 3), (82, 5), (6, 65)])
@pytest.mark.parametrize("books", [1, 2, 3])
def test_equals_float64(kind, shape, books, precision, generator, guard, device):
    scales = 1 if shape[0] == 1 else shape[0] // 2
    drawn = draw(generator(shape[0] + books), shape, books, 7, scales, precision.dtype)
    arguments = [guard(x.to(device)) for x in drawn]
    found = code_sq_errors(*arguments)
    assert found.dtype == torch.float32
    expected = expected_errors(*arguments)
    precision.close(found, expected, scale=float(expected.max()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_code_dtype_and_memory_layout(kind, dtype, generator, device):
    target, codes, codebooks, scales = draw(generator(0), (24, 8), 2, 100, 3)
    strided = torch.stack([target, target], dim=2)[:, :, 1].to(device)
    codes = codes.to(device, dtype).t().contiguous().t()
    books = codebooks.transpose(1, 2).contiguous().transpose(1, 2).to(device)
    found = code_sq_errors(strided, codes, books, scales.to(device))
    expected = expected_errors(target, codes, codebooks, scales)
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-5, atol=1e-5)


def test_no_groups(kind, device):
    books = torch.zeros(2, 4, 8, device=device)
    codes = torch.zeros(0, 2, dtype=torch.uint8, device=device)
    found = code_sq_errors(torch.zeros(0, 8, device=device), codes, books, books[0, 0, :2])
    assert found.shape == (0,)


def test_double_precision():
    arguments = draw(torch.Generator().manual_seed(0), (6, 4), 2, 5, 2, torch.float64)
    found = code_sq_errors(*arguments)
    torch.testing.assert_close(found, expected_errors(*arguments), rtol=1e-12, atol=0.0)


def test_errors(monkeypatch):
    target, codes, books, scales = draw(torch.Generator().manual_seed(0), (6, 4), 2, 5, 2)
    with pytest.raises(ValueError, match="scales must divide the 6 groups evenly, got 4"):
        code_sq_errors(target, codes, books, torch.ones(4))
    with pytest.raises(ValueError, match=r"codes must have shape \[6, 2\]"):
        code_sq_errors(target, codes[:, :1], books, scales)
    with pytest.raises(TypeError, match="codes must be one of uint8"):
        code_sq_errors(target, codes.float(), books, scales)
    monkeypatch.setenv("PVOPT_KERNELS_DEBUG", "1")
    with pytest.raises(IndexError, match=r"codes must be in 0 \.\. 4, got 0 \.\. 5"):
        code_sq_errors(target, torch.tensor([[0, 5]] * 6), books, scales)


def test_opcheck(monkeypatch):
    monkeypatch.undo()  # memory without guard bands: opcheck compares storage offsets
    arguments = draw(torch.Generator().manual_seed(0), (6, 4), 2, 5, 2)
    torch.library.opcheck(torch.ops.pvopt.code_sq_errors, arguments)
