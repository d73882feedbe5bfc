"""A step waits for the device once, and makes few calls: on a GPU each costs as much as 5 KB."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pvopt import (
    E8P,
    AdditiveCodebooks,
    AllGroups,
    FitOptions,
    Forced,
    Greedy,
    Parametrization,
    Proportional,
    PVOptimizer,
    SharedValues,
    Stochastic,
    Ternary,
    Uniform,
    UniformGrid,
    VectorCodebook,
    quantize_,
)

# The linear layers of one of SmolLM2-135M's blocks, out by in.
BLOCK = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal")


class Calls(TorchDispatchMode):
    """Counts all calls, those that compute, and those whose result is read on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.computing: Counter[str] = Counter()
        self.total = 0
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        # A mask as an index is looked up on the host for its size.
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in WAITS or name.startswith("unique") or by_mask:
            self.waits[name] += 1
        elif not (
            func.is_view or name in ("detach", "view", "alias") or func.namespace == "profiler"
        ):
            self.computing[name] += 1
        self.total += func.namespace != "profiler"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def lists(monkeypatch) -> list[str]:
    """Collect the files that call ``tolist``, which no dispatch mode sees."""
    callers: list[str] = []
    plain = Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        callers.append(sys._getframe(1).f_code.co_filename)
        return plain(tensor)

    monkeypatch.setattr(Tensor, "tolist", tolist)
    return callers


def set_up(
    parametrization: Parametrization, shapes: list[tuple[int, int]], **options: Any
) -> PVOptimizer:
    """Return an optimizer that has taken a step, with gradients for the next."""
    source = torch.Generator().manual_seed(0)
    model = nn.ModuleList(nn.Linear(columns, rows, bias=False) for rows, columns in shapes)
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=source) / 20)
    start = FitOptions(iterations=0, beam_size=1)
    weights = quantize_(model, parametrization, options=start)
    base = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    optimizer = PVOptimizer(base, weights, **options)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=source)
    optimizer.step()
    return optimizer


KINDS = {
    "values": SharedValues(num_values=4),
    "grid": UniformGrid(bits=2, group_size=16),
    "symmetric grid": UniformGrid(bits=4, symmetric=True),
    "ternary": Ternary(group_size=16),
    "vectors": VectorCodebook(bits=3, group_size=4),
    "sums": AdditiveCodebooks(num_codebooks=2, bits=3, in_group=4, scale_group=16),
    "lattice": E8P(bits=2),
}
RULES: dict[str, dict[str, Any]] = {
    "greedy": {"subspace": Greedy(0.2), "trust_ratio": 0.1, "latent_decay": 0.0},
    "decay": {"subspace": AllGroups(), "latent_decay": 0.5},
    "measured": {"subspace": Greedy(0.2), "trust_ratio": 0.1, "latent_decay": 1.0},
    "forced": {"subspace": Greedy(0.2), "rounding": Forced(), "latent_decay": 1.0},
    "stochastic": {"subspace": AllGroups(), "rounding": Stochastic(), "trust_ratio": 0.1},
    "random": {"subspace": Uniform(0.2)},
    "proportional": {"subspace": Proportional(0.2)},
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("rules", list(RULES))
def test_a_step_waits_once_for_all_gradients(lists, kind, rules):
    """Codebooks, grids and lattices, with the usual rules.

    Gain and metrics that couple columns search in rounds whose number depends on the weights, and
    sparse weights pick their nonzeros out by a mask: these wait.
    """
    shapes = [(8, 32), (8, 32), (8, 32), (16, 16)]
    optimizer = set_up(KINDS[kind], shapes, **RULES[rules])
    lists.clear()
    with Calls() as calls:
        optimizer.step()
    assert calls.waits == {"_local_scalar_dense": 1}
    # The order of the codebooks is drawn on the host.
    assert all(file.endswith("draws.py") for file in lists)


def test_the_report_is_read_when_it_is_asked_for(lists):
    optimizer = set_up(KINDS["grid"], [(8, 32), (8, 32)], **RULES["forced"])
    lists.clear()
    optimizer.step()
    assert lists == []
    assert optimizer.report.changed_groups > 0
    assert len(lists) == 1


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_step_makes_few_calls_for_each_shape(decay):
    """Two blocks of SmolLM2 as 2x8g8: per shape, and none for each weight."""
    parametrization = AdditiveCodebooks(num_codebooks=2, bits=8, in_group=8)
    options = {"subspace": Greedy(0.01), "latent_decay": decay}
    counts, totals = [], []
    for blocks in (1, 2):
        optimizer = set_up(parametrization, BLOCK * blocks, **options)
        optimizer.step()  # makes views that later steps use again
        for p in optimizer.param_groups[0]["params"]:
            p.grad.neg_()
        with Calls() as calls:
            optimizer.step()
        counts.append(sum(calls.computing.values()))
        totals.append(calls.total)
    shapes = len(set(BLOCK))
    # Without latents, a third of them find out how long steps on codes may be.
    assert totals[1] <= (36 if decay == 0 else 60) * shapes
    assert counts[1] - counts[0] <= 4 * shapes  # some for stacks of several, none for a weight
    assert totals[1] - totals[0] <= 4 * shapes
