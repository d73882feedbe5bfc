"""gather_groups against slices, for every implementation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stacks import LAYOUTS, lay_out, with_guards

from pvopt_kernels import gather_groups

SETTINGS = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SIZES = {
    "seed": st.integers(0, 2**32 - 1),
    "count": st.integers(0, 4),
    "rows": st.sampled_from([1, 2, 7]),
    "cols": st.sampled_from([1, 6, 41]),
    "wanted": st.sampled_from([0, 1, 5, 300]),
    "group": st.sampled_from([(1, 1), (1, 8), (2, 3), (4, 2), (1, 100)]),
    "layout": st.sampled_from(LAYOUTS),
}


def draw(seed, count, rows, cols, wanted, group) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return weights and numbers of distinct groups."""
    source = torch.Generator().manual_seed(seed)
    shape = rows * group[0], cols * group[1]
    weights = [torch.randn(shape, generator=source) for _ in range(count)]
    numbers = [torch.randperm(rows * cols, generator=source)[:wanted] for _ in range(count)]
    return weights, torch.stack(numbers) if count else torch.zeros(0, 3, dtype=torch.int64)


def block(weight: torch.Tensor, number: int, group: tuple[int, int]) -> torch.Tensor:
    """Return the view of a group."""
    i, j = divmod(number, weight.shape[1] // group[1])
    return weight[i * group[0] : (i + 1) * group[0], j * group[1] : (j + 1) * group[1]]


@SETTINGS
@given(**SIZES)
def test_gather_groups_equals_slices(
    kind, guard, device, seed, count, rows, cols, wanted, group, layout
):
    weights, numbers = draw(seed, count, rows, cols, wanted, group)
    weights = lay_out([w.to(device) for w in weights], layout)
    found = gather_groups(
        with_guards(weights, guard), guard(numbers.to(device)),
        out_group=group[0], in_group=group[1],
    )  # fmt: skip
    assert found.shape == (*numbers.shape, group[0] * group[1])
    assert found.dtype == torch.float32
    for part, weight, wanted_here in zip(found, weights, numbers.tolist(), strict=True):
        for values, number in zip(part, wanted_here, strict=True):
            assert torch.equal(values, block(weight, number, group).flatten().float())


def test_double_precision_and_repeated_groups(device):
    weight = torch.arange(12.0, dtype=torch.float64, device=device).view(2, 6)
    found = gather_groups([weight], torch.tensor([[3, 3, 0]], device=device), in_group=3)
    assert found.dtype == torch.float64
    assert found.tolist() == [[[9, 10, 11], [9, 10, 11], [0, 1, 2]]]


def test_errors(monkeypatch):
    weights, groups = [torch.zeros(4, 8)] * 2, torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="targets must have 2 tensors, one for each weight, got 1"):
        gather_groups(weights[:1], groups, in_group=4)
    with pytest.raises(ValueError, match="out_group and in_group must divide 4 rows and 8 columns"):
        gather_groups(weights, groups, in_group=3)
    with pytest.raises(TypeError, match=r"groups must be int64, got torch\.int32"):
        gather_groups(weights, groups.int(), in_group=4)
    monkeypatch.setenv("PVOPT_KERNELS_DEBUG", "1")
    with pytest.raises(IndexError, match=r"groups must be in 0 \.\. 7, got 8 \.\. 8"):
        gather_groups(weights, groups + 8, in_group=4)
