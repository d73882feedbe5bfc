"""stacked_codebook_grad against a loop over groups in float64 and codebook_grad."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quantized_weights import FORMATS
from stacks import LAYOUTS, Stack, draw_stack, lay_out, with_guards
from test_codebook_grad import SMALL, expected_grads

from pvopt_kernels import codebook_grad, stacked_codebook_grad


def draw_gradients(stack: Stack, seed: int, dtype=torch.float32) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    device = stack.args[0].device
    return [torch.randn(stack.shape, generator=source).to(device, dtype) for _ in stack.weights]


def check(stack: Stack, gradients: list[torch.Tensor], guard) -> None:
    given = with_guards(gradients, guard), *map(guard, stack.args)
    books, scales = stacked_codebook_grad(*given, out_group=stack.out_group)
    assert books.shape == stack.args[1].shape
    assert scales.shape == stack.args[2].shape
    assert books.dtype == scales.dtype == stack.args[1].dtype
    for w, (gradient, weight) in enumerate(zip(gradients, stack.weights, strict=True)):
        expected = expected_grads(weight, gradient)
        torch.testing.assert_close(books[w].double().cpu(), expected[0], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(scales[w].double().cpu(), expected[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_every_format(kind, name, guard, device):
    stack = draw_stack(1, device, torch.float32, 2, **FORMATS[name])
    check(stack, draw_gradients(stack, 2), guard)


def test_dtypes(kind, precision, guard, device):
    stack = draw_stack(3, device, torch.float32, 2, in_group=4, out_group=2, entries=4)
    check(stack, draw_gradients(stack, 4, precision.dtype), guard)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_mixed_dtypes(kind, layout, guard, device):
    stack = draw_stack(
        5, device, torch.float32, 3, rows=3, out_group=2, in_group=4, scales=2, entries=4
    )
    check(stack, lay_out(draw_gradients(stack, 6), layout), guard)


@settings(
    max_examples=8,
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
        seed, device, torch.float32, count, rows=rows, cols=cols, books=books, entries=3,
        out_group=group[0], in_group=group[1],
    )  # fmt: skip
    check(stack, draw_gradients(stack, seed), guard)


@pytest.mark.parametrize("out_group", [1, 2])
def test_a_weight_has_the_bits_of_codebook_grad_whatever_it_is_stacked_with(
    kind, out_group, monkeypatch, device
):
    """Two weights at a time, and tables that are added up."""
    rows = 40 if kind == "cpu" else 5  # the interpreter has a program for each scale
    if kind == "cpu":
        module = importlib.import_module("pvopt_kernels.cpu.stacked_codebook_grad")
        monkeypatch.setattr(module, "_TABLES", 2 * 16 * 2 * 4 * 8)
        assert module.slabs(40 * 30 * 8, 2 * 4 * 8) == 16
    if kind == "triton":
        module = importlib.import_module("pvopt_kernels.triton.stacked_codebook_grad")
        monkeypatch.setattr(module, "_SORTED", 2 * rows * 30 * 2)
    stack = draw_stack(
        7, device, torch.float32, 3, rows=rows, cols=30, entries=4, in_group=8 // out_group,
        out_group=out_group, scales=2,
    )  # fmt: skip
    gradients = draw_gradients(stack, 8)
    books, scales = stacked_codebook_grad(gradients, *stack.args, out_group=out_group)
    for w, weight in enumerate(stack.weights):
        single = codebook_grad(gradients[w], *weight.args, out_group=out_group)
        assert torch.equal(books[w], single[0])
        assert torch.equal(scales[w], single[1])
        expected = expected_grads(weight, gradients[w])
        torch.testing.assert_close(books[w].double().cpu(), expected[0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(scales[w].double().cpu(), expected[1], rtol=1e-4, atol=1e-3)


def test_errors(device):
    stack = draw_stack(9, device, torch.float32, 2)
    gradients = draw_gradients(stack, 10)
    with pytest.raises(ValueError, match="gradients must have 2 tensors, one for each weight"):
        stacked_codebook_grad(gradients[:1], *stack.args)
    with pytest.raises(TypeError, match=r"gradients\[1\] must be one of"):
        stacked_codebook_grad([gradients[0], gradients[1].int()], *stack.args)
