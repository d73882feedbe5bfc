"""One run: a start in full precision, quantized, then tuned by a recipe or a peer."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LinearLR

import pvopt
from benchmarks.recipes.peers import lsq, parq
from benchmarks.recipes.tasks import TASKS, Batch, Task

__all__ = ["DENSE_START", "METHODS", "RECIPES", "measure"]

#: The default after ``quantize_(keep_dense=True)``.
DENSE_START = "dense start"
RECIPES: dict[str, Callable[..., pvopt.PVOptimizer]] = {
    "default": pvopt.PVOptimizer,
    DENSE_START: pvopt.PVOptimizer,
    "ste": pvopt.ste,
    "subspace_pv_ste": pvopt.subspace_pv_ste,
    "subspace_pv": pvopt.subspace_pv,
    "stochastic_rounding": pvopt.stochastic_rounding,
    "naive_pv": pvopt.naive_pv,
    "continuous_only": pvopt.continuous_only,
}
#: Everything that is compared, by name.
METHODS = ("full precision", "rounding", *RECIPES, "LSQ", "PARQ")


def _train(
    task: Task, model: nn.Module, optimizer: Optimizer, data: Batch, steps: int, seed: int
) -> int:
    """Train with a learning rate that falls linearly; return the number of changes of a code."""
    source, changed = torch.Generator().manual_seed(seed), 0
    inputs, labels = data
    schedule = LinearLR(optimizer, start_factor=1.0, end_factor=1.0 / steps, total_iters=steps)
    for _ in range(steps):
        batch = torch.randint(0, len(inputs), (task.batch,), generator=source)
        optimizer.zero_grad()
        task.loss(model, (inputs[batch], labels[batch])).backward()
        optimizer.step()
        schedule.step()
        if isinstance(optimizer, pvopt.PVOptimizer):
            changed += optimizer.report.changed_groups
    return changed


@functools.cache
def _data(name: str, split: str) -> Batch:
    return TASKS[name].data(split)


@functools.cache
def _start(name: str, seed: int, steps: int) -> nn.Module:
    """Return the model in full precision that every method begins with."""
    task = TASKS[name]
    torch.manual_seed(seed)
    model = task.model()
    _train(task, model, Adam(model.parameters(), lr=task.lr), _data(name, "train"), steps, seed)
    return model


def measure(name: str, method: str, seed: int, *, steps: int, split: str) -> dict[str, Any]:
    """Run one method on one task.

    Args:
        name: of the task.
        method: one of :data:`METHODS`.
        seed: of the start and of the batches.
        steps: of the start, and again of the method.
        split: that scores are of.

    Returns:
        Loss, how many codes moved per group, and seconds of training.

    Raises:
        ImportError: for PARQ without torchao.
    """
    task, model = TASKS[name], copy.deepcopy(_start(name, seed, steps))
    names, codes, moved = task.quantized(model), 0, 0
    optimizer: Optimizer | None = None
    if method == "full precision":
        optimizer = Adam(model.parameters(), lr=task.lr)
    elif method == "LSQ":
        optimizer = lsq(model, names, task.lr)
    elif method == "PARQ":
        optimizer = parq(model, names, task.lr, steps)
    else:
        spec = {weight: task.parametrization for weight in names}
        keep = method == DENSE_START
        weights = pvopt.quantize_(model, spec, exclude=(), keep_dense=keep)
        codes = sum(rep.num_groups for rep in weights.values())
        if method in RECIPES:
            optimizer = RECIPES[method](Adam(model.parameters(), lr=task.lr), weights)
    began = time.process_time()
    if optimizer is not None:
        moved = _train(task, model, optimizer, _data(name, "train"), steps, seed + 1000)
    seconds = time.process_time() - began
    return {
        "task": name,
        "method": method,
        "seed": seed,
        "loss": task.score(model, _data(name, split)),
        "moved": moved / max(1, codes),
        "train_s": seconds,
    }
