"""group_sq_norms against float64 NumPy, for every implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pvopt_kernels.ops import group_sq_norms


def expected_norms(target, weight, out_group: int, in_group: int) -> torch.Tensor:
    difference = target.double().cpu().numpy() - weight.double().cpu().numpy()
    rows, columns = difference.shape
    blocks = [
        np.sum(difference[r : r + out_group, c : c + in_group] ** 2)
        for r in range(0, rows, out_group)
        for c in range(0, columns, in_group)
    ]
    return torch.tensor(np.array(blocks, dtype=np.float64))


def draw(generator, device, dtype, rows: int, columns: int) -> list[torch.Tensor]:
    source = generator(rows * 1000 + columns)
    return [torch.randn(rows, columns, generator=source).to(device, dtype) for _ in range(2)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (2, 3), (3, 5), (1, 40), (1, 2100)])
def test_group_sq_norms_equals_float64(kind, shape, precision, generator, guard, device):
    out_group, in_group = shape
    for blocks in [(1, 1), (3, 7), (2, 41)]:
        if blocks[1] * in_group > 10000:
            continue
        size = (blocks[0] * out_group, blocks[1] * in_group)
        target, weight = map(guard, draw(generator, device, precision.dtype, *size))
        found = group_sq_norms(target, weight, out_group=out_group, in_group=in_group)
        assert found.dtype == torch.float32
        expected = expected_norms(target, weight, out_group, in_group)
        precision.close(found, expected, scale=float(expected.max()))


@pytest.mark.parametrize("size", [(0, 8), (4, 0)])
def test_no_groups(kind, size, device):
    target = torch.zeros(size, device=device)
    assert group_sq_norms(target, target, out_group=2, in_group=4).shape == (0,)


def test_any_memory_layout_and_mixed_dtypes(kind, generator, device):
    target, weight = draw(generator, device, torch.float32, 12, 32)
    expected = expected_norms(target[::2, ::2], weight.bfloat16().t()[:16, :6].t(), 2, 4)
    found = group_sq_norms(
        target[::2, ::2], weight.bfloat16().t()[:16, :6].t(), out_group=2, in_group=4
    )
    torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-6, atol=1e-6)


def test_errors():
    x = torch.zeros(4, 8)
    with pytest.raises(ValueError, match=r"target must have shape \[4, 8\], got \[4, 4\]"):
        group_sq_norms(x[:, :4], x, in_group=4)
    with pytest.raises(ValueError, match="out_group and in_group must divide 4 rows"):
        group_sq_norms(x, x, in_group=3)
    with pytest.raises(TypeError, match=r"weight must be one of float16.*got torch\.int64"):
        group_sq_norms(x, x.long())
    with pytest.raises(ValueError, match="target on meta, weight on cpu"):
        group_sq_norms(x.to("meta"), x)
