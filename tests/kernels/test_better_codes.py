"""better_codes against all codes there are, in float64, for every implementation."""

from __future__ import annotations

import itertools

import pytest
import torch
from stacks import Stack, draw_stack
from test_decode_groups import some_groups

from pvopt_kernels import better_codes, decode_groups

ENTRIES = 5


def draw(seed: int, device: torch.device, count: int = 3) -> tuple[Stack, torch.Tensor]:
    settings = {"rows": 4, "cols": 12, "entries": ENTRIES, "in_group": 4, "scales": 3}
    stack = draw_stack(seed, device, torch.float32, count, **settings)
    return stack, some_groups(stack, 8)


def least_errors(stack: Stack, groups: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the least squared error of each group over all of its codes."""
    codes, books, scales = (t.double().cpu() for t in stack.args)
    each = len(groups) // len(codes)
    per_scale = codes.shape[2] // scales.shape[2]
    found = []
    for n, group in enumerate(groups.tolist()):
        book = books[n // each]
        pairs = itertools.product(range(ENTRIES), repeat=2)
        all_sums = torch.stack([book[0][a] + book[1][b] for a, b in pairs])
        scale = scales.flatten()[group // per_scale]
        found.append((scale * all_sums - target[n].double().cpu()).square().sum(1).min())
    return torch.stack(found)


def test_the_best_codes_are_found(kind, device):
    """A beam that holds all combinations is exact."""
    stack, groups = draw(1, device)
    target = torch.randn(len(groups), 4, generator=torch.Generator().manual_seed(2)).to(device)
    settings = {"beam_size": ENTRIES**2, "order": [1, 0]}
    codes, decoded, errors, current, present = better_codes(target, groups, *stack.args, **settings)
    own = stack.args[0].flatten(0, 2)[groups]
    assert torch.equal(current, own.long())
    assert torch.equal(present, decode_groups(groups, *stack.args))
    assert torch.equal(decoded, decode_groups(groups, *stack.args, new_codes=codes[:, 0]))
    assert bool((codes[:, 0] != current).any())
    expected = least_errors(stack, groups, target)
    torch.testing.assert_close(errors[:, 0].double().cpu(), expected, rtol=1e-5, atol=1e-6)


def test_what_is_no_better_is_not_taken(kind, device):
    """Of equal entries the present one stays, and where the scale is 0 all are equal."""
    stack, groups = draw(3, device)
    _, books, scales = stack.args
    books[:, :, 1:] = books[:, :, :1]  # all entries alike
    scales[1] = 0
    target = torch.randn(len(groups), 4, generator=torch.Generator().manual_seed(4)).to(device)
    found = better_codes(target, groups, *stack.args, beam_size=2, order=[0, 1])
    assert torch.equal(found[0][:, 0], found[3])
    assert torch.equal(found[1], found[4])


def test_errors(device):
    stack, groups = draw(7, device)
    target = torch.zeros(len(groups), 4, device=device)
    for beam_size, order, words in (
        (0, [0, 1], "beam_size must be positive, got 0"),
        (1, [0, 0], r"order must name codebooks 0 .. 1, each at most once, got \[0, 0\]"),
        (1, [2], r"order must name codebooks 0 .. 1, each at most once, got \[2\]"),
    ):
        with pytest.raises(ValueError, match=words):
            better_codes(target, groups, *stack.args, beam_size=beam_size, order=order)
    with pytest.raises(TypeError, match=r"target must be torch.float32 like codebooks"):
        better_codes(target.half(), groups, *stack.args, beam_size=1, order=[0])
    with pytest.raises(ValueError, match=r"target must have shape \[24, 4\], got \[24, 3\]"):
        better_codes(target[:, :3], groups, *stack.args, beam_size=1, order=[0])
