"""decoded_sq_norms against float64 NumPy, for every implementation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quantized_weights import FORMATS
from stacks import LAYOUTS, Stack, draw_stack, lay_out, with_guards

from pvopt_kernels import decoded_sq_norms


def draw_targets(stack: Stack, seed: int, dtype=torch.float32) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    device = stack.args[0].device
    return [torch.randn(stack.shape, generator=source).to(device, dtype) for _ in stack.weights]


def check(stack: Stack, targets: list[torch.Tensor], guard) -> None:
    given = with_guards(targets, guard), *map(guard, stack.args)
    changes, norms = decoded_sq_norms(*given, out_group=stack.out_group)
    count, rows, cols, _ = stack.args[0].shape
    assert changes.shape == (count, rows * cols)
    assert norms.shape == (count,)
    assert changes.dtype == norms.dtype == torch.float32
    in_group = stack.args[1].shape[3] // stack.out_group
    for w, (target, dense) in enumerate(zip(targets, stack.dense(), strict=True)):
        squares = (target.double().cpu() - dense).square()
        expected = squares.view(rows, stack.out_group, cols, in_group).sum((1, 3)).flatten()
        torch.testing.assert_close(changes[w].double().cpu(), expected, rtol=1e-5, atol=1e-5)
        total = dense.square().sum()
        torch.testing.assert_close(norms[w].double().cpu(), total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(kind, name, guard, device):
    stack = draw_stack(1, device, torch.float32, 2, **FORMATS[name])
    check(stack, draw_targets(stack, 2), guard)


def test_dtypes(kind, precision, guard, device):
    stack = draw_stack(3, device, torch.float32, 2, in_group=4, out_group=2)
    check(stack, draw_targets(stack, 4, precision.dtype), guard)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_mixed_dtypes(kind, layout, guard, device):
    stack = draw_stack(5, device, torch.float32, 3, rows=3, out_group=2, in_group=4, scales=2)
    check(stack, lay_out(draw_targets(stack, 6), layout), guard)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 4),
    rows=st.sampled_from([0, 1, 2, 7]),
    cols=st.sampled_from([0, 1, 6, 67]),
    books=st.integers(1, 3),
    group=st.sampled_from([(1, 1), (1, 8), (2, 3), (1, 5), (4, 2)]),
)
def test_ragged_stacks(kind, guard, device, seed, count, rows, cols, books, group):
    stack = draw_stack(
        seed, device, torch.float32, count, rows=rows, cols=cols, books=books, entries=5,
        out_group=group[0], in_group=group[1],
    )  # fmt: skip
    check(stack, draw_targets(stack, seed), guard)


def test_a_weight_has_the_same_bits_whatever_it_is_stacked_with(kind, device):
    stack = draw_stack(7, device, torch.float32, 4, rows=9, cols=20)
    targets = draw_targets(stack, 8)
    together = decoded_sq_norms(targets, *stack.args)
    for w in range(4):
        alone = decoded_sq_norms(targets[w : w + 1], *(part[w : w + 1] for part in stack.args))
        assert torch.equal(alone[0][0], together[0][w])
        assert torch.equal(alone[1][0], together[1][w])


def test_double_precision(device):
    stack = draw_stack(9, device, torch.float32, 2)
    targets = [t.double() for t in draw_targets(stack, 10)]
    changes, norms = decoded_sq_norms(targets, *stack.args)
    assert changes.dtype == norms.dtype == torch.float64


def test_errors(device):
    stack = draw_stack(11, device, torch.float32, 2)
    targets = draw_targets(stack, 12)
    with pytest.raises(ValueError, match="targets must have 2 tensors, one for each weight, got 1"):
        decoded_sq_norms(targets[:1], *stack.args)
    with pytest.raises(ValueError, match=r"targets\[1\] must have shape \[5, 48\], got \[48, 5\]"):
        decoded_sq_norms([targets[0], targets[1].T], *stack.args)
