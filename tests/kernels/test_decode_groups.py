"""decode_groups against decode_into, bit for bit, for every implementation."""

from __future__ import annotations

import pytest
import torch
from quantized_weights import FORMATS
from stacks import Stack, draw_stack

from pvopt_kernels import decode_groups, decode_into, gather_groups


def some_groups(stack: Stack, each: int) -> torch.Tensor:
    """Draw numbers of groups of each weight, in any order."""
    count, rows, cols, _ = stack.args[0].shape
    source = torch.Generator().manual_seed(each)
    size = rows * cols
    own = [w * size + torch.randperm(size, generator=source)[:each] for w in range(count)]
    return torch.cat(own).to(stack.args[0].device)


def decoded(stack: Stack, groups: torch.Tensor) -> torch.Tensor:
    """Return the groups of the dense weights."""
    codes, books, _ = stack.args
    count, rows, cols, _ = codes.shape
    dense = [torch.empty(stack.shape, dtype=books.dtype, device=codes.device) for _ in range(count)]
    decode_into(dense, *stack.args, out_group=stack.out_group)
    size = books.shape[3] // stack.out_group
    numbers = groups.view(count, -1) % (rows * cols)
    found = gather_groups(dense, numbers, out_group=stack.out_group, in_group=size)
    return found.flatten(0, 1).to(books.dtype)


@pytest.mark.parametrize("name", ["2x8g8", "blocks of scales", "16 bits", "wide"])
def test_groups_are_those_of_the_dense_weights(kind, name, guard, device):
    stack = draw_stack(1, device, torch.float32, 3, **FORMATS[name])
    groups = some_groups(stack, 9)
    found = decode_groups(guard(groups), *map(guard, stack.args), out_group=stack.out_group)
    assert torch.equal(found, decoded(stack, groups))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_dtypes(kind, dtype, device):
    stack = draw_stack(2, device, dtype, 2)
    groups = some_groups(stack, 7)
    assert torch.equal(decode_groups(groups, *stack.args), decoded(stack, groups))


def test_other_codes(kind, device):
    """What groups would decode to if they had the codes of others; no groups at all."""
    stack = draw_stack(3, device, torch.float32, 2, cols=60)
    groups, others = some_groups(stack, 20), some_groups(stack, 21)
    others = others.view(2, -1)[:, :20].flatten()
    codes = stack.args[0].flatten(0, 2)
    found = decode_groups(groups, *stack.args, new_codes=codes[others].long())
    moved = stack.args[0].clone()
    moved.view(codes.shape)[groups] = codes[others]
    assert torch.equal(found, decode_groups(groups, moved, *stack.args[1:]))
    assert decode_groups(groups[:0], *stack.args).shape == (0, 8)


def test_errors(device):
    stack = draw_stack(4, device, torch.float32, 2)
    groups = some_groups(stack, 4)
    with pytest.raises(ValueError, match="groups must be as many for each of the 2 weights, got 7"):
        decode_groups(groups[1:], *stack.args)
    with pytest.raises(TypeError, match=r"groups must be int64, got torch.int32"):
        decode_groups(groups.int(), *stack.args)
    with pytest.raises(ValueError, match=r"new_codes must have shape \[8, 2\], got \[8, 1\]"):
        decode_groups(groups, *stack.args, new_codes=groups[:, None])
    with pytest.raises(TypeError, match=r"new_codes must be int64, got torch.uint8"):
        decode_groups(groups, *stack.args, new_codes=torch.zeros(8, 2, dtype=torch.uint8))
    with pytest.raises(IndexError, match=r"new_codes must be in 0 .. 15, got 16 .. 16"):
        decode_groups(groups, *stack.args, new_codes=torch.full((8, 2), 16))
    with pytest.raises(IndexError, match=r"groups must be in 0 .. 59"):
        decode_groups(groups + 60, *stack.args)
