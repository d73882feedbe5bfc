"""largest_changes against decoded_sq_norms and a sort, bit for bit, for every implementation."""

from __future__ import annotations

import pytest
import torch
from stacks import LAYOUTS, Stack, draw_stack, lay_out, with_guards
from test_decoded_sq_norms import draw_targets

from pvopt_kernels import decoded_sq_norms, largest, largest_changes
from pvopt_kernels.cpu import largest_changes as on_cpu


def check(stack: Stack, targets: list[torch.Tensor], k: int, guard) -> None:
    given = with_guards(targets, guard), *map(guard, stack.args)
    values, places, norms = largest_changes(*given, k, out_group=stack.out_group)
    changes, expected = decoded_sq_norms(*given, out_group=stack.out_group)
    assert torch.equal(norms, expected)
    wanted = largest(changes.sqrt(), k)
    assert torch.equal(values, wanted[0])
    assert torch.equal(places, wanted[1])


@pytest.mark.parametrize("k", [1, 40])
@pytest.mark.parametrize("count", [1, 9])
def test_the_largest_come_first_of_equal_ones_the_first(monkeypatch, kind, guard, device, count, k):
    """Of few distinct codes and targets, so that most norms occur many times."""
    monkeypatch.setattr(on_cpu, "_AT_ONCE", 10_000)  # two weights
    stack = draw_stack(1, device, torch.float32, count, rows=20, cols=60, entries=2, in_group=8)
    targets = [target.round() for target in draw_targets(stack, 2)]
    check(stack, targets, k, guard)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_blocks_of_rows(kind, guard, device, layout):
    stack = draw_stack(
        3, device, torch.float32, 5, rows=7, cols=60, out_group=2, in_group=4, scales=2
    )
    check(stack, lay_out(draw_targets(stack, 4), layout), 50, guard)


def test_double_precision(device):
    stack = draw_stack(5, device, torch.float32, 2)
    targets = [t.double() for t in draw_targets(stack, 6)]
    assert largest_changes(targets, *stack.args, 3)[0].dtype == torch.float64


def test_errors(device):
    stack = draw_stack(7, device, torch.float32, 2)
    targets = draw_targets(stack, 8)
    for k in (0, 31):
        with pytest.raises(ValueError, match=f"k must be in 1 .. 30, .* got {k}"):
            largest_changes(targets, *stack.args, k)
