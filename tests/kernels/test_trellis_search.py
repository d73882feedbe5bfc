"""The search of a trellis against all sequences, and against all nodes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pvopt_kernels import trellis_search, trellis_states, trellis_table

DOUBLE = torch.float64
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def errors_of(
    symbols: Tensor, target: Tensor, table: Tensor, bits: int, metric: Tensor | None
) -> Tensor:
    """Squared errors of circular sequences ``[m, steps]`` against one target, in float64."""
    state_bits = len(table).bit_length() - 1
    states = trellis_states(symbols, symbol_bits=bits, state_bits=state_bits)
    squares = (table.double()[states.long()].flatten(1) - target.double()).square()
    return (squares if metric is None else squares * metric.double()).sum(1)


def all_sequences(steps: int, bits: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(1 << bits), repeat=steps)))


def last_nodes(symbols: Tensor, bits: int, state_bits: int) -> Tensor:
    states = trellis_states(symbols, symbol_bits=bits, state_bits=state_bits)
    return states[:, -1] & ((1 << (state_bits - bits)) - 1)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([(1, 3, 7), (1, 2, 8), (2, 5, 4), (2, 4, 4), (3, 6, 3)]),
    values=st.sampled_from([1, 2]),
    k=st.sampled_from([1, 1, 2, 5, 1000]),
    with_metric=st.booleans(),
    grid=st.booleans(),
)
def test_sequences_through_a_node_are_searched_exactly(seed, size, values, k, with_metric, grid):
    """Against all circular sequences that pass the node; weights on a grid have many ties."""
    bits, state_bits, steps = size
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(1 << state_bits, values, generator=generator, dtype=DOUBLE)
    target = torch.randn(3, steps * values, generator=generator, dtype=DOUBLE)
    metric = torch.rand(3, steps * values, generator=generator, dtype=DOUBLE)
    if grid:
        table, target, metric = table.round(), target.round(), (2 * metric).round()
    metric = metric if with_metric else None
    every = all_sequences(steps, bits)
    nodes = last_nodes(every, bits, state_bits)
    node = torch.randint(1 << (state_bits - bits), (3,), generator=generator)
    ends = node[:, None].expand(3, 2)
    found = trellis_search(target, table, k, symbol_bits=bits, metric=metric, ends=ends)
    free = trellis_search(target, table, k, symbol_bits=bits, metric=metric)
    for i in range(3):
        own = None if metric is None else metric[i]
        errors = errors_of(every, target[i], table, bits, own)
        through = errors[nodes == node[i]]
        count = min(k, len(through))
        assert found.shape == free.shape == (3, count, steps)
        assert len(set(map(tuple, found[i].tolist()))) == count
        assert (last_nodes(found[i], bits, state_bits) == node[i]).all()
        wanted = through.topk(count, largest=False).values
        mine = errors_of(found[i], target[i], table, bits, own)
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-9)
        # Without ends the node is the search's own choice; given it, the search is exact as well.
        chosen = last_nodes(free[i], bits, state_bits)
        assert (chosen == chosen[0]).all()
        wanted = errors[nodes == chosen[0]].topk(count, largest=False).values
        mine = errors_of(free[i], target[i], table, bits, own)
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-9)


def test_the_node_of_a_long_sequence_is_nearly_always_the_best(generator):
    """The best of all nodes, each with both ends fixed, is the exact optimum."""
    bits, state_bits = 2, 8
    table = trellis_table("mul1", state_bits).double()[:, None]
    target = torch.randn(8, 64, generator=generator(0), dtype=DOUBLE)
    nodes = torch.arange(1 << (state_bits - bits))
    found = trellis_search(target, table, symbol_bits=bits)[:, 0]
    for i in range(8):
        ends = nodes[:, None].expand(-1, 2)
        several = target[i].expand(len(nodes), -1)
        every = trellis_search(several, table, symbol_bits=bits, ends=ends)[:, 0]
        best = errors_of(every, target[i], table, bits, None).min()
        mine = errors_of(found[i : i + 1], target[i], table, bits, None)[0]
        assert best - 1e-9 <= mine <= 1.02 * best


def test_between_two_nodes_the_way_is_the_best(generator):
    """A window of a longer sequence: the symbols around it stay."""
    bits, state_bits, first, steps = 2, 4, 3, 5
    table = torch.randn(1 << state_bits, 1, generator=generator(1), dtype=DOUBLE)
    whole = torch.randint(1 << bits, (1, 12), generator=generator(2))
    target = torch.randn(1, 12, generator=generator(3), dtype=DOUBLE)
    states = trellis_states(whole, symbol_bits=bits, state_bits=state_bits)
    mask = (1 << (state_bits - bits)) - 1
    ends = torch.stack([states[:, first - 1], states[:, first + steps - 1]], 1) & mask
    window = slice(first, first + steps)
    found = trellis_search(target[:, window], table, symbol_bits=bits, ends=ends)[:, 0]
    moved = whole.clone()
    moved[:, window] = found
    inside = all_sequences(4, bits)  # the last symbol of the window is that of its last node
    every = whole.repeat(len(inside), 1)
    every[:, first : first + 4] = inside
    wanted = errors_of(every, target[0], table, bits, None).min()
    torch.testing.assert_close(errors_of(moved, target[0], table, bits, None)[0], wanted)


# None, one, more than the lanes of a vector.
@pytest.mark.parametrize(
    ("rows", "k", "bits", "values"), [(0, 1, 2, 1), (1, 3, 2, 2), (17, 1, 2, 2), (17, 3, 2, 1)]
)
def test_in_lower_precision(kind, precision, rows, k, bits, values, generator, guard, device):
    """As near as the search in float64, whatever path it takes."""
    if kind == "triton" and (k > 1 or rows > 1) and device.type == "cpu":
        pytest.skip("slow in an interpreter: one sequence is a program, several are the reference")
    state_bits = 2 * bits + 1
    table = trellis_table("3inst", state_bits + values - 1).view(-1, values).to(precision.dtype)
    steps = 13
    target = torch.randn(rows, steps * values, generator=generator(1)).to(precision.dtype)
    metric = torch.rand(target.shape, generator=generator(2)).to(precision.dtype)
    arguments = guard(target.to(device)), guard(table.to(device)), k
    for weights in (None, guard(metric.to(device))):
        found = trellis_search(*arguments, symbol_bits=bits, metric=weights).cpu()
        assert found.shape == (rows, k, steps)
        if rows == 0:
            continue
        assert 0 <= int(found.min()) <= int(found.max()) < 1 << bits
        chosen = torch.stack([last_nodes(row, bits, state_bits) for row in found])
        assert (chosen == chosen[:, :1]).all()
        exact = None if weights is None else metric.double()
        wanted = trellis_search(
            target.double(), table.double(), k, symbol_bits=bits, metric=exact,
            ends=chosen[:, :1].expand(-1, 2),
        )  # fmt: skip
        for i in range(rows):
            own = None if exact is None else exact[i]
            torch.testing.assert_close(
                errors_of(found[i], target[i], table, bits, own),
                errors_of(wanted[i], target[i], table, bits, own),
                rtol=1e-5,
                atol=1e-5,
            )


def test_bad_arguments_are_refused():
    target, table = torch.zeros(2, 8), torch.zeros(16, 1)
    for wrong, message in [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"symbol_bits": 0}, r"symbol_bits must be in 1\.\.8, got 0"),
        ({"symbol_bits": 3}, r"state_bits must be in 6\.\.20 for symbols of 3 bits, got 4"),
        ({"table": table[:12]}, "table must have a power of two of rows, got 12"),
        ({"target": target[:, :3], "table": torch.zeros(16, 2)}, "positive multiple of 2 weights"),
        ({"target": target[:, :1]}, "must have at least 4 bits, got 1 steps of 2"),
        ({"metric": target[:1]}, r"metric must have shape \[2, 8\], got \[1, 8\]"),
        ({"ends": torch.zeros(2, 3)}, r"ends must have shape \[2, 2\], got \[2, 3\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            trellis_search(**{"target": target, "table": table, "symbol_bits": 2} | wrong)
    with pytest.raises(TypeError, match="target must be one of"):
        trellis_search(target.int(), table, symbol_bits=2)


def test_it_passes_the_checks_of_custom_operators(monkeypatch):
    monkeypatch.undo()  # the checks have their own way with memory
    target = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))
    table = trellis_table("mcg", 4)[:, None]
    for metric, ends in ((None, None), (target.square(), torch.zeros(3, 2, dtype=torch.int64))):
        torch.library.opcheck(
            torch.ops.pvopt.trellis_search.default,
            (target, table, 2, 2, metric, ends),
            test_utils=CHECKS,
        )
