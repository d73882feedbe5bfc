"""What a step needs for a moment beside its state, in bytes of tensors: the same in every run."""

from __future__ import annotations

import pytest
from torch.optim import AdamW

from benchmarks.step.memory import peak_allocated
from benchmarks.step.setups import Weights
from pvopt import Greedy, PVOptimizer


def peak_of_a_step(weights: Weights, fraction: float, latent_decay: float) -> int:
    base = AdamW(weights.parameters, lr=1e-3, fused=True)
    options = {"subspace": Greedy(fraction), "latent_decay": latent_decay}
    optimizer = PVOptimizer(base, weights.representations, **options)
    optimizer.step()  # the state is there then
    return peak_allocated(optimizer.step)


@pytest.mark.parametrize("latent_decay", [0.0, 1.0])
def test_of_values_there_are_gradients_one_copy_and_two_results_at_most(latent_decay):
    """So that a step can be undone; no copies of the moments, and none of the weights."""
    weights = Weights.draw([(64, 64)] * 24)
    values = sum(v.nbytes for rep in weights.representations.values() for v in rep.values.values())
    assert values < weights.dense_bytes * 1.1
    assert peak_of_a_step(weights, 0.01, latent_decay) < 4.2 * values


@pytest.mark.parametrize("latent_decay", [0.0, 1.0])
def test_of_groups_that_are_searched_little_is_known_at_once(latent_decay):
    """Numbers, goals, codes and decoded groups before and after, and one result of their size."""
    weights = Weights.draw([(256, 256)] * 8)
    searched = sum(rep.num_groups // 2 for rep in weights.representations.values())
    needed = 200 * searched  # groups of 8
    values = sum(v.nbytes for rep in weights.representations.values() for v in rep.values.values())
    assert peak_of_a_step(weights, 0.5, latent_decay) < needed + 2 * values
