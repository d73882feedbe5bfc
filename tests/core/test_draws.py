"""Random draws: what a weight draws follows from seed, name and step alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvopt import Draws

CPU = torch.device("cpu")
NAMES = st.lists(st.text(max_size=6), min_size=1, max_size=5, unique=True)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), step=st.integers(0, 10**6), names=NAMES, data=st.data())
def test_draws_do_not_depend_on_the_company(seed, step, names, data):
    together = Draws.of_step(seed, names, step, CPU)
    some = data.draw(st.permutations(names))[: data.draw(st.integers(1, len(names)))]
    others = Draws.of_step(seed, some, step, CPU)
    for dtype in (torch.float32, torch.float64):
        every, part = together.uniform(9, dtype), others.uniform(9, dtype)
        assert every.dtype == dtype
        assert together.count == len(every) == len(names)
        for name, row in zip(some, part, strict=True):
            assert torch.equal(every[names.index(name)], row)
    # what all share is the same for all
    assert together.permutation(7) == others.permutation(7)
    assert bool(((every >= 0) & (every < 1)).all())


def test_seeds_names_and_steps_draw_differently():
    keys = itertools.product((0, 1, 10), ("a", "b", "ab", "a/1", ""), (0, 1, 11))
    rows = [
        tuple(Draws.of_step(seed, [name], step, CPU).uniform(4)[0].tolist())
        for seed, name, step in keys
    ]
    assert len(set(rows)) == len(rows)
    orders = {tuple(Draws.of_step(0, ["a"], step, CPU).permutation(20)) for step in range(10)}
    assert len(orders) == 10


def test_a_copy_repeats_what_comes_and_leaves_the_original_alone():
    for make in (
        lambda: Draws.of_step(3, ["a", "b"], 5, CPU),
        lambda: Draws.of(torch.Generator().manual_seed(3), CPU),
    ):
        draws, twin = make(), make()
        draws.uniform(3), twin.uniform(3)
        copy = draws.copy()
        first = copy.uniform(4), copy.permutation(9), copy.uniform(2)
        again = draws.copy()
        assert torch.equal(again.uniform(4), first[0])
        assert again.permutation(9) == first[1]
        assert torch.equal(again.uniform(2), first[2])
        found = draws.uniform(4), draws.permutation(9), draws.uniform(2)
        wanted = twin.uniform(4), twin.permutation(9), twin.uniform(2)
        for a, b, c in zip(found, wanted, first, strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(c))


def test_sources_of_one_weight():
    draws = Draws.of_step(0, ["a"], 0, CPU)
    assert Draws.of(draws, CPU) is draws
    assert torch.equal(Draws.of(None, CPU).uniform(5), Draws.of(None, CPU).uniform(5))
    generator = torch.Generator().manual_seed(4)
    wanted = torch.rand(5, generator=torch.Generator().manual_seed(4))
    assert torch.equal(Draws.of(generator, CPU).uniform(5)[0], wanted)
    assert not torch.equal(Draws.of(generator, CPU).uniform(5)[0], wanted)  # it has moved on


@pytest.mark.parametrize("count", [1, 2, 30])
def test_permutations(count):
    assert sorted(Draws.of(None, CPU).permutation(count)) == list(range(count))


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    draws = Draws.of_step(0, ["a", "b"], 0, CPU)
    draws.uniform(3), draws.permutation(3), draws.copy()
    assert torch.equal(state, torch.get_rng_state())
