"""Runs by itself: four processes train a small model that fully_shard has shared out.

``python tests/sharding.py FOLDER`` leaves what they found there for test_sharded.py.
They are forked from one that has imported torch, which takes longer than all that they do.
"""

from __future__ import annotations

import copy
import functools
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from pvopt import (
    E8P,
    AdditiveCodebooks,
    Binary,
    Forced,
    Gain,
    Greedy,
    NestedGrid,
    Parametrization,
    Proportional,
    PVOptimizer,
    QuantizedWeights,
    Rotation,
    Scheme,
    SecondMoment,
    SharedValues,
    Stochastic,
    Ternary,
    Trellis,
    Uniform,
    UniformGrid,
    formats,
    quantize_,
)
from pvopt.engine.exchange import Channel

PROCESSES = 4
# Rows that divide evenly, and 5 of which the fourth process has none; layers of one shape.
SMALL = {
    "0": ((16, 24), AdditiveCodebooks(num_codebooks=2, bits=3, in_group=4, out_group=2)),
    "1": ((24, 24), UniformGrid(bits=3, group_size=8)),
    "2": ((24, 5), SharedValues(num_values=5)),
}
PAIR = {"0": SMALL["0"], "1": SMALL["2"]}
LARGE = {
    "0": ((16, 24), AdditiveCodebooks(num_codebooks=2, bits=3, in_group=4, scale_group=8)),
    "1": ((24, 24), UniformGrid(bits=3, group_size=8)),
    "2": ((24, 24), UniformGrid(bits=3, group_size=8)),
    "3": ((24, 16), E8P(bits=2)),
    "4": ((16, 16), SharedValues(num_values=5)),
    "5": ((16, 16), E8P(bits=2, per_tensor=True)),
    "6": ((16, 5), Ternary()),
}
GRIDS = {
    "0": ((16, 24), UniformGrid(bits=3, group_size=8)),
    "1": ((24, 24), Binary(group_size=8)),
    "2": ((24, 5), NestedGrid(bits=2, group_size=2, groups=4, scale_bits=3)),
}
Layers = dict[str, tuple[tuple[int, int], Parametrization]]


@dataclass
class Training:
    """A model, its optimizer and one batch, the same in all processes."""

    model: nn.Sequential
    weights: QuantizedWeights
    optimizer: PVOptimizer
    inputs: Tensor
    targets: Tensor
    collectives: list[int] = field(default_factory=list)

    def backward(self) -> None:
        """Put gradients in place."""
        self.optimizer.zero_grad()
        self.loss().backward()

    def loss(self) -> Tensor:
        """Return the loss."""
        return (self.model(self.inputs) - self.targets).square().mean()

    def run(self, steps: int) -> list[dict[str, int]]:
        """Take steps; return how many groups changed in each."""
        counts = []
        for _ in range(steps):
            self.backward()
            with counted_collectives() as calls:
                self.optimizer.step()
            self.collectives.append(len(calls))
            counts.append(self.optimizer.report.changed)
        self.weights.check()
        return counts

    def found(self) -> dict[str, Any]:
        """Return all codes, values and parameters, of all rows."""
        reps = {name: dict(rep.tensors()) for name, rep in self.weights.gathered().items()}
        parameters = {name: whole(p).clone() for name, p in self.model.named_parameters()}
        return {"representations": reps, "parameters": parameters}


def whole(parameter: Tensor) -> Tensor:
    """Return all rows of a parameter."""
    found = parameter.detach()
    return found.full_tensor() if hasattr(found, "full_tensor") else found  # type: ignore


def make_model(layers: Layers) -> nn.Sequential:
    """Return a model, the same in all processes."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*[nn.Linear(*size) for size, _ in layers.values()])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model


def schemes_of(layers: Layers) -> dict[str, Parametrization]:
    """Return the parametrizations by layer."""
    return {name: scheme for name, (_, scheme) in layers.items()}


@functools.cache
def quantized(layers: tuple[Any, ...], keep_dense: bool) -> tuple[nn.Sequential, QuantizedWeights]:
    """Return a model that is not sharded, quantized; once, because fits take their time."""
    model = make_model(dict(layers))
    return model, quantize_(model, schemes_of(dict(layers)), keep_dense=keep_dense)


def warm_up() -> None:
    """Import and compile before the fork what all processes need; autograd must not run yet."""
    for layers in (SMALL, PAIR, LARGE, GRIDS):
        training = make(None, layers, **GREEDY)
        for parameter in training.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        training.optimizer.step()


def shard(model: nn.Sequential, mesh: DeviceMesh | None) -> None:
    """Share out every layer, if there is a mesh."""
    if mesh is not None:
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)


def make(
    mesh: DeviceMesh | None,
    layers: Layers = SMALL,
    *,
    sharded_first: bool = False,
    keep_dense: bool = False,
    adam: bool = False,
    **rules: Any,
) -> Training:
    """Return a training on the processes of a mesh; None shards nothing."""
    if sharded_first:
        model = make_model(layers)
        shard(model, mesh)
        weights = quantize_(model, schemes_of(layers), keep_dense=keep_dense)
    else:
        model, weights = copy.deepcopy(quantized(tuple(layers.items()), keep_dense))
        shard(model, mesh)
    # Adam of sharded tensors takes torch ten times as long as all else here.
    base: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    if adam:
        # One layer measures how long its steps on codes are, the others have latent weights.
        first, *rest = [list(layer.parameters()) for layer in model]
        groups = [
            {"params": first, "latent_decay": 1.0},
            {"params": [p for own in rest for p in own]},
        ]
        base = torch.optim.Adam(groups, lr=0.02)
    data = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(8, 16, generator=data), torch.randn(8, 5, generator=data)
    return Training(model, weights, PVOptimizer(base, weights, **rules), inputs, targets)


RANDOM = {
    "latent_decay": 1.0,
    "code_lr_ratio": 20.0,
    "subspace": Proportional(0.1),
    "rounding": Stochastic(),
    "trust_ratio": 0.3,
}
GREEDY = {"latent_decay": 0.5, "subspace": Greedy(0.2), "trust_ratio": 0.3}
RULES: dict[str, tuple[int, Layers, dict[str, Any]]] = {
    "straight-through": (2, SMALL, {}),
    "random": (6, PAIR, RANDOM),
    "greedy": (2, LARGE, GREEDY | {"sharded_first": True}),
    "grids": (2, GRIDS, GREEDY),
    "uniform": (2, GRIDS, {"subspace": Uniform(0.3), "rounding": Forced(), "latent_decay": 1.0}),
    "measured": (3, SMALL, {"subspace": Greedy(0.1), "latent_decay": 1.0}),
    "all in order": (2, SMALL, {"trust_ratio": 0.2}),
}


@contextmanager
def counted_collectives() -> Iterator[list[str]]:
    """Count the collectives of the optimizer; those of fully_shard are not made in steps."""
    calls: list[str] = []
    names = ("all_reduce", "all_gather_into_tensor")
    originals = {name: getattr(dist, name) for name in names}

    def counting(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return originals[name](*arguments, **options)

        return call

    try:
        for name in names:
            setattr(dist, name, counting(name))
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


class Processes:
    """This process, and meshes of some processes each.

    Args:
        rank: of this process.
    """

    def __init__(self, rank: int, folder: Path) -> None:
        self.rank, self.folder = rank, folder
        # Of as many processes; so one and two of them can work at the same time.
        members = {1: [0], 2: [1, 2], 3: [0, 1, 2], 4: [0, 1, 2, 3]}
        self.meshes = {size: DeviceMesh("cpu", ranks) for size, ranks in members.items()}
        self.sizes = [size for size, ranks in members.items() if rank in ranks]


def equal_bits(here: Processes) -> dict[str, Any]:
    """Train with all rules on 1, 2 and 4 processes."""
    results: dict[str, Any] = {}
    for name, (steps, layers, rules) in RULES.items():
        for size in here.sizes:
            if size == 3 and name != "greedy":
                continue
            training = make(here.meshes[size], layers, **rules)
            counts = training.run(steps)
            results[f"{name} on {size}"] = {"counts": counts, **training.found()}
            results.setdefault("collectives", {})[name] = training.collectives
        if here.rank == 3 and steps < 5:  # which has least to do
            training = make(None, layers, **rules)
            counts = training.run(steps)
            results[f"{name} unsharded"] = {"counts": counts, **training.found()}
    return results


def checkpoints(here: Processes) -> dict[str, Any]:
    """Save on 4 processes, go on; load on 1, 2, 3 and 4, and without any, and go on alike."""
    rules = {"adam": True, "subspace": Uniform(0.2), "rounding": Stochastic()}
    training = make(here.meshes[4], **rules)
    training.run(2)
    folder = here.folder / "checkpoint"
    model, optimizer = get_state_dict(training.model, training.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
    training.run(1)
    results = {"continued": training.found()}
    for size in [*here.sizes, *([None] if here.rank == 3 else [])]:
        mesh = None if size is None else here.meshes[size]
        loaded = make(mesh, **rules)
        model, optimizer = get_state_dict(loaded.model, loaded.optimizer)
        state = {"model": model, "optimizer": optimizer}
        if mesh is None:
            dcp.load(state, checkpoint_id=folder, no_dist=True)
        else:
            dcp.load(state, checkpoint_id=folder, process_group=mesh.get_group())
        set_state_dict(
            loaded.model,
            loaded.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        loaded.run(1)
        results[f"on {size}"] = loaded.found()
    return results


def faults(here: Processes) -> dict[str, Any]:
    """Let one process have a bad gradient, a changed weight, a bad checkpoint: all stop."""
    training = make(here.meshes[4])
    training.run(1)
    before = training.found()
    results: dict[str, Any] = {}
    training.backward()
    weight = training.model[1].weight
    if here.rank == 2:
        weight.grad.to_local()[0, 0] = torch.nan
    results["not a number"] = raised(training.optimizer.step)
    results["unchanged"] = same(before, training.found())
    training.backward()
    if here.rank == 1:
        weight.detach().to_local()[0, 0] += 1
    results["changed weight"] = raised(training.optimizer.step)
    training.weights.write_()
    results["unchanged"] &= same(before, training.found())
    saved = training.optimizer.state_dict()
    if here.rank == 3:
        saved["state"][0]["pv.values.codebooks"] = torch.full((2, 8, 8), torch.nan)
    results["bad state"] = raised(training.optimizer.load_state_dict, saved)
    results["unchanged"] &= same(before, training.found())
    training.run(1)
    results["goes on"] = not same(before, training.found())
    return results


def ways(here: Processes) -> dict[str, Any]:
    """Accumulate gradients, hold copies of shards, keep dense weights."""
    results: dict[str, Any] = {}
    for size in here.sizes:
        if size == 3:
            continue
        training = make(here.meshes[size])
        training.model.set_requires_gradient_sync(False)
        training.backward()
        training.optimizer.step()  # there are no gradients yet
        training.model.set_requires_gradient_sync(True)
        training.loss().backward()
        training.optimizer.step()
        results[f"accumulated on {size}"] = training.found()
    layers, rules = RULES["greedy"][1:]
    copies = DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("copies", "rows"))
    for name, mesh in (("copies", copies), ("none", here.meshes[4])):
        training = make(mesh, layers, keep_dense=name == "none", **rules)
        training.run(2)
        results[f"greedy with {name}"] = training.found()
    return results


def refusals(here: Processes) -> dict[str, Any]:
    """Do what cannot work."""
    mesh = here.meshes[4]
    results = {}
    for name, scheme in {
        "rotation": Scheme(UniformGrid(bits=2), Rotation()),
        "trellis": Trellis(bits=2, state_bits=5, out_group=2, in_group=4),
        "rows of a group": AdditiveCodebooks(num_codebooks=1, bits=2, in_group=4, out_group=4),
    }.items():
        model = nn.Sequential(nn.Linear(16, 8))
        shard(model, mesh)
        results[name] = raised(quantize_, model, scheme)
    for name, rules in {
        "gain": {"subspace": Gain(0.1)},
        "metric": {"metric": SecondMoment(), "adam": True},
    }.items():
        results[name] = raised(make, mesh, **rules)
    training = make(None)
    shard(training.model, mesh)
    training.loss().backward()
    results["sharded last"] = raised(training.optimizer.step)
    training = make(mesh)
    results["save"] = raised(formats.save, here.folder / "x", training.model, training.weights)
    results["broadcast"] = raised(training.weights.broadcast_)
    columns = nn.Linear(16, 8)
    columns.weight = nn.Parameter(distribute_tensor(columns.weight.detach(), mesh, [Shard(1)]))
    results["columns"] = raised(quantize_, columns, UniformGrid(bits=2))
    return results


def replicas(here: Processes) -> dict[str, Any]:
    """Let copies differ: of a whole weight, of a codebook, of a shard."""
    results: dict[str, Any] = {}
    copies = DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("copies", "rows"))
    planted = {
        "whole": (None, lambda t: t.weights["1.weight"].values["scales"]),
        "common": (here.meshes[4], lambda t: t.weights["0.weight"].values["codebooks"]),
        "shard": (copies, lambda t: t.optimizer.state[t.model[1].weight]["pv.latent"]),
    }
    for name, (mesh, find) in planted.items():
        training = make(mesh, check_replicas_every=2)
        training.run(1)
        if here.rank == 3:
            with torch.no_grad():
                find(training).flatten()[0] += 1
            training.weights.write_()
        training.backward()
        results[name] = [raised(training.optimizer.step)]  # the second step does not look
        training.backward()
        results[name].append(raised(training.optimizer.step))
    return results


@contextmanager
def dies_in_second_collective() -> Iterator[None]:
    """Leave the block in the middle of a step."""
    original, calls = Channel.sum, []

    def dying(self: Channel, tensors: Any) -> Any:
        calls.append(tensors)
        if len(calls) == 2:
            raise SystemExit
        return original(self, tensors)

    try:
        Channel.sum = dying
        yield
    except SystemExit:
        return
    finally:
        Channel.sum = original


def killed(here: Processes) -> dict[str, Any]:
    """Let the last process die in the middle of a step; the last scenario."""
    training = make(here.meshes[4])
    training.run(1)
    before = copy.deepcopy({name: dict(rep.tensors()) for name, rep in training.weights.items()})
    training.backward()
    if here.rank == 3:
        with dies_in_second_collective():
            raised(training.optimizer.step)
        return {}
    error = raised(training.optimizer.step)
    after = {name: dict(rep.tensors()) for name, rep in training.weights.items()}
    return {"error": error, "unchanged": all(same(before[n], after[n]) for n in before)}


def raised(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Return the error that a call raises, as text."""
    try:
        call(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def same(left: Any, right: Any) -> bool:
    """Tell whether nested tensors have the same bits."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return torch.equal(left, right)


SCENARIOS = {
    "equal_bits": equal_bits,
    "checkpoints": checkpoints,
    "faults": faults,
    "ways": ways,
    "refusals": refusals,
    "replicas": replicas,
    "killed": killed,
}


def process(rank: int, folder: Path) -> None:
    """Go through all scenarios; leave what they return, or the error that ended one."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    options = {"rank": rank, "world_size": PROCESSES, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=store, **options)
    results: dict[str, Any] = {}
    here = Processes(rank, folder)
    for name, scenario in SCENARIOS.items():
        try:
            results[name] = scenario(here)
        except BaseException:
            results[name] = traceback.format_exc()
            break  # the others wait for this process in vain
    torch.save(results, folder / f"{rank}.pt")
    os._exit(0)


def main(folder: Path) -> None:
    """Fork the processes, wait for them."""
    torch.set_num_threads(1)
    warm_up()
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=process, args=(rank, folder)) for rank in range(PROCESSES)]
    for child in children:
        child.start()
    for child in children:
        child.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
