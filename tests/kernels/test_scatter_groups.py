"""scatter_groups against slices, for every implementation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from stacks import lay_out
from test_gather_groups import SETTINGS, SIZES, block, draw

from pvopt_kernels import scatter_groups


@SETTINGS
@given(**SIZES)
def test_scatter_groups_equals_slices(
    kind, guard, device, seed, count, rows, cols, wanted, group, layout
):
    weights, numbers = draw(seed, count, rows, cols, wanted, group)
    weights = lay_out([w.to(device) for w in weights], layout)
    source = torch.Generator().manual_seed(seed + 1)
    values = torch.randn(*numbers.shape, group[0] * group[1], generator=source)
    values = values.bfloat16().float().to(device)  # the interpreter truncates
    expected = [weight.clone() for weight in weights]
    for out, wanted_here, part in zip(expected, numbers.tolist(), values, strict=True):
        for number, entries in zip(wanted_here, part, strict=True):
            block(out, number, group).copy_(entries.view(group))
    scatter_groups(
        weights, guard(numbers.to(device)), guard(values), out_group=group[0], in_group=group[1]
    )
    assert all(map(torch.equal, weights, expected))


def test_autograd_notices_that_a_tensor_has_changed(kind, device):
    with torch.no_grad():
        out = torch.zeros(2, 8, device=device)
        before = out._version
        scatter_groups(
            [out], torch.tensor([[1]], device=device), torch.ones(1, 1, 4, device=device),
            in_group=4,
        )  # fmt: skip
    assert out._version > before
    assert out[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_errors():
    outs, groups = [torch.zeros(4, 8)] * 2, torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"rows must have shape \[2, 3, 4\], got \[2, 3, 8\]"):
        scatter_groups(outs, groups, torch.zeros(2, 3, 8), in_group=4)
    with pytest.raises(TypeError, match="rows must be one of"):
        scatter_groups(outs, groups, torch.zeros(2, 3, 4).int(), in_group=4)
    with pytest.raises(ValueError, match="outs must have 2 tensors"):
        scatter_groups(outs[:1], groups, torch.zeros(2, 3, 4), in_group=4)
