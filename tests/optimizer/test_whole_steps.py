"""A step is taken whole or not at all, whoever raises; what cannot be stepped is refused before."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from pvopt import (
    AdamValues,
    AllGroups,
    Forced,
    Gain,
    Greedy,
    Parametrization,
    PVOptimizer,
    Rotation,
    Scheme,
    SecondMoment,
    Sparse,
    Stochastic,
    UniformGrid,
    continuous_only,
    quantize_,
    ste,
)
from pvopt.engine import undo

OPTIONS: dict[str, dict[str, Any]] = {
    "ste": {"subspace": AllGroups(), "latent_decay": 0.0},
    "penalised": {"subspace": Greedy(0.3), "latent_decay": 0.3, "trust_ratio": 0.5},
    "forced": {"subspace": Greedy(0.3), "rounding": Forced()},
    "stochastic": {"subspace": AllGroups(), "rounding": Stochastic()},
    "gain": {"subspace": Gain(0.3), "metric": SecondMoment(), "latent_decay": 0.0},
}
KINDS: dict[str, Parametrization | Scheme] = {
    "sums": None,  # type: ignore[dict-item]
    "grid": UniformGrid(bits=2),
    "sparse": Sparse(density=0.5),
    "rotated": Scheme(UniformGrid(bits=2), Rotation()),
}


class Stop(Exception):
    """Not an error that anybody would catch by accident."""


@dataclass
class Trap:
    """Raises when it is passed for the last of so many times."""

    passes: int
    error: type[BaseException]

    def __call__(self) -> None:
        self.passes -= 1
        if self.passes == 0:
            raise self.error


def trapped(name: str, trap: Trap, monkeypatch: pytest.MonkeyPatch, optimizer: PVOptimizer) -> None:
    """Let a part of the step run into a trap, after it has done its work."""
    owners: dict[str, tuple[Any, str]] = {
        "base": (optimizer.base, "step"),
        "values": (type(optimizer.values), "move_"),
        "rounding": (type(optimizer.rounding), "choose"),
        "subspace": (type(optimizer.subspace), "select"),
    }
    owner, method = owners[name]
    plain = getattr(owner, method)

    def run(*args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        trap()
        return found

    monkeypatch.setattr(owner, method, run)


def kept(setup: Any, optimizer: PVOptimizer) -> Any:
    """What a step that failed must not have changed: all but the moments of the base."""
    ours = {
        number: {key: value for key, value in entries.items() if key.startswith("pv.")}
        for number, entries in optimizer.state_dict()["state"].items()
    }
    return copy.deepcopy((dict(setup.model.state_dict()), ours, optimizer.param_groups[0]["lr"]))


@pytest.mark.parametrize("part", ["base", "values", "rounding", "subspace"])
@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_fails_on_the_way_is_undone(
    make_setup, assert_same, monkeypatch, part, options, dtype
):
    """In the first weight and in the last; an interrupt alike."""
    kinds = list(KINDS)
    kind = kinds[(list(OPTIONS).index(options) + len(part)) % len(kinds)]
    setup = make_setup(KINDS[kind], dtype=dtype)
    optimizer = PVOptimizer(
        Adam(setup.model.parameters(), lr=0.1), setup.weights, **OPTIONS[options]
    )
    last = 1 if part in ("base", "values") else 2
    for steps in (0, 2):
        for error, passes in ((Stop, 1), (KeyboardInterrupt, last)):
            for _ in range(steps):
                setup.backward()
                optimizer.step()
            setup.backward()
            before, report = kept(setup, optimizer), optimizer.report
            with monkeypatch.context() as patch:
                trapped(part, Trap(passes, error), patch, optimizer)
                with pytest.raises(error):
                    optimizer.step()
            assert_same(kept(setup, optimizer), before)
            assert optimizer.report is report
            if steps == 0:
                assert not optimizer.base.state
            for p in setup.model.parameters():
                assert p.dtype == dtype
                assert p.grad is not None
    setup.backward()
    optimizer.step()
    setup.check_decoded()


def test_a_failed_step_leaves_no_trace_in_those_that_follow(make_setup, assert_same, monkeypatch):
    """With a base that keeps no moments the run goes on as if nothing had been."""
    setup, twin = make_setup(), make_setup()
    one, two = (ste(SGD(s.model.parameters(), lr=0.1), s.weights) for s in (setup, twin))
    for step in range(4):
        for s in (setup, twin):
            s.backward()
        if step % 2:
            with monkeypatch.context() as patch:
                trapped("rounding", Trap(2, Stop), patch, one)
                with pytest.raises(Stop):
                    one.step()
        one.step()
        two.step()
    assert_same(one.state_dict(), two.state_dict())
    assert_same(dict(setup.model.state_dict()), dict(twin.model.state_dict()))


def test_an_interrupt_waits_until_the_weights_are_written(make_setup, assert_same, monkeypatch):
    setup, twin = make_setup(), make_setup()
    one, two = (ste(SGD(s.model.parameters(), lr=0.1), s.weights) for s in (setup, twin))
    for s, optimizer in ((setup, one), (twin, two)):
        s.backward()
        optimizer.step()
        s.backward()
    writer = type(setup.weights["0.weight"].parametrization)
    plain = writer.write_into

    def write(*args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        plain(*args)

    # Tests that run in a shell's background were started with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(writer, "write_into", write)
            with pytest.raises(KeyboardInterrupt):
                one.step()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    two.step()
    assert_same(one.state_dict(), two.state_dict())
    assert_same(dict(setup.model.state_dict()), dict(twin.model.state_dict()))


def test_interrupts_that_python_does_not_handle_are_left_alone(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    monkeypatch.setattr(signal, "signal", None)
    with undo.interrupts_wait():
        pass


class Assigning(Optimizer):
    """Writes new data, in place of writing into the old ones."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = p.data - group["lr"] * p.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("latent_decay", [0.0, 0.5, 1.0])
def test_a_base_may_assign_data(make_setup, assert_same, dtype, latent_decay):
    results = []
    for make in (Assigning, SGD):
        setup = make_setup(dtype=dtype)
        optimizer = PVOptimizer(
            make(setup.model.parameters(), lr=0.25),
            setup.weights,
            latent_decay=latent_decay,
            subspace=AllGroups(),
        )
        pointers = [p.data_ptr() for p in setup.weights.parameters()]
        for _ in range(4):
            setup.backward()
            optimizer.step()
            setup.check_decoded()
        assert [p.data_ptr() for p in setup.weights.parameters()] == pointers
        results.append((dict(setup.model.state_dict()), setup.weights.snapshot()))
    assert_same(*results)


SPARSE_BASES: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.5, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.5),
    "adam": lambda p: Adam(p, lr=0.1),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant")  # of torch's own Adagrad
@pytest.mark.parametrize("base", list(SPARSE_BASES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("latent_decay", [0.0, 1.0])
def test_sparse_gradients_of_an_embedding_step_as_dense_ones(
    assert_same, base, dtype, latent_decay
):
    results = []
    for sparse in (True, False):
        generator = torch.Generator().manual_seed(0)
        layer = nn.Embedding(10, 8, sparse=sparse)
        layer.weight.data.copy_(torch.randn(10, 8, generator=generator))
        weights = quantize_(layer.to(dtype), {"weight": UniformGrid(bits=3, group_size=8)})
        optimizer = PVOptimizer(
            SPARSE_BASES[base](layer.parameters()),
            weights,
            subspace=AllGroups(),
            latent_decay=latent_decay,
        )
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.tensor([1, 2, 2])).square().sum().backward()
            gradient = layer.weight.grad
            optimizer.step()
            assert layer.weight.grad is gradient
            assert gradient is not None
            assert gradient.is_sparse == sparse
            weights.check()
        results.append(weights.snapshot())
    assert_same(*results)


def test_sparse_adam_moves_the_rows_that_were_looked_up():
    layer = nn.Embedding(10, 8, sparse=True)
    weights = quantize_(layer, {"weight": UniformGrid(bits=2, group_size=8)})
    optimizer = ste(torch.optim.SparseAdam(list(layer.parameters()), lr=0.5), weights)
    start = weights["weight"].codes["levels"].clone()
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.tensor([1, 2])).square().sum().backward()
        optimizer.step()
    moved = (weights["weight"].codes["levels"] != start).flatten(1).any(1)
    assert set(moved.nonzero().flatten().tolist()) <= {1, 2}
    assert bool(moved.any())


@pytest.mark.parametrize("values", ["adam", "frozen codes"])
def test_maximize_moves_values_and_codes_up(make_setup, assert_same, values):
    up, down = make_setup(), make_setup()
    results = []
    for setup, sign in ((up, -1.0), (down, 1.0)):
        base = Adam(setup.model.parameters(), lr=0.05, maximize=sign < 0)
        make = ste if values == "adam" else continuous_only
        optimizer = make(base, setup.weights, values=AdamValues())
        for _ in range(4):
            setup.model.zero_grad()
            (sign * setup.loss()).backward()
            optimizer.step()
        results.append((dict(setup.model.state_dict()), setup.weights.snapshot()))
    assert_same(*results)


class ScheduleFree(Optimizer):
    """The protocol of schedule-free SGD: gradients at y, steps of z, evaluation at the average."""

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": True})

    @torch.no_grad()
    def _to(self, train: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] == train:
                continue
            weight = 1 - group["beta"] if train else 1 - 1 / group["beta"]
            for p in group["params"]:
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"].to(p.dtype), weight)
            group["train_mode"] = train

    def train(self) -> None:
        self._to(True)

    def eval(self) -> None:
        self._to(False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if not group["train_mode"]:
                raise RuntimeError("not in train mode")
            share = 1 / (group["k"] + 1)
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.detach().clone())
                p.lerp_(z, share)
                p.add_(p.grad, alpha=group["lr"] * (group["beta"] * (1 - share) - 1))
                z.sub_(p.grad, alpha=group["lr"])
            group["k"] += 1


@pytest.mark.parametrize("through", ["optimizer", "base"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_that_averages_does_so_with_the_latents(make_setup, assert_same, through, dtype):
    setup = make_setup(dtype=dtype)
    optimizer = ste(ScheduleFree(setup.model.parameters()), setup.weights)
    dense = [nn.Parameter(rep.decode()) for rep in setup.weights.values()]
    twin = ScheduleFree(dense)
    for _ in range(5):
        setup.backward()
        for p, d in zip(setup.weights.parameters(), dense, strict=True):
            assert p.grad is not None
            d.grad = p.grad.float()
        optimizer.step()
        twin.step()
    shown: Any = optimizer if through == "optimizer" else optimizer.base

    def check() -> None:
        setup.check_decoded()
        setup.weights.check()
        for p, d in zip(setup.weights.parameters(), dense, strict=True):
            torch.testing.assert_close(optimizer.state[p]["pv.latent"], d.detach())

    check()
    shown.eval()
    twin.eval()
    check()
    before = kept(setup, optimizer)
    setup.backward()
    with pytest.raises(RuntimeError, match=r"not in train mode"):
        optimizer.step()
    assert_same(kept(setup, optimizer), before)
    shown.train()
    twin.train()
    check()
    copied = copy.deepcopy((setup, optimizer))
    copied[1].eval()
    copied[0].check_decoded()


def test_other_bases_have_nothing_to_switch(make_setup, assert_same):
    setup = make_setup()
    optimizer = ste(Adam(setup.model.parameters()), setup.weights)
    before = kept(setup, optimizer)
    optimizer.eval()
    optimizer.train()
    assert_same(kept(setup, optimizer), before)


class NeedsClosure(SGD):
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        closure()
        return super().step()


class TwoSteps(SGD):
    def first_step(self) -> None: ...
    def second_step(self) -> None: ...


class NoRate(Optimizer):
    def __init__(self, params: Any, **defaults: Any) -> None:
        super().__init__(params, defaults)


REFUSED: dict[str, tuple[Callable[[Any], Optimizer], type[Exception], str]] = {
    "closure": (lambda p: NeedsClosure(p, lr=0.1), TypeError, "NeedsClosure.step needs 'closure'"),
    "two steps": (lambda p: TwoSteps(p, lr=0.1), TypeError, "TwoSteps with first_step"),
    "no lr": (lambda p: NoRate(p), TypeError, "numeric lr.*got None with NoRate"),
    "lr is None": (lambda p: NoRate(p, lr=None), TypeError, "numeric lr.*got None with NoRate"),
    "lr is a word": (lambda p: NoRate(p, lr="auto"), TypeError, "numeric lr.*got 'auto'"),
    "differentiable": (lambda p: SGD(p, lr=0.1, differentiable=True), ValueError, "differentiable"),
    "averages": (lambda p: ScheduleFree(p), ValueError, "latent_decay must be below 1, got 1.0"),
}


@pytest.mark.parametrize("kind", list(REFUSED))
def test_bases_that_do_not_fit_are_refused_when_the_optimizer_is_made(make_setup, kind):
    make, error, words = REFUSED[kind]
    setup = make_setup()
    base = make(list(setup.model.parameters()))
    hook = base.register_step_post_hook(lambda *args: None)
    with pytest.raises(error, match=words):
        PVOptimizer(base, setup.weights, latent_decay=1.0)
    assert hook.id in base._optimizer_step_post_hooks
    assert "fraction" not in base.param_groups[0]


def test_a_group_without_quantized_weights_needs_no_rate(make_setup):
    setup = make_setup()
    base = SGD(setup.weights.parameters(), lr=0.1)
    optimizer = PVOptimizer(base, setup.weights)
    with pytest.raises(TypeError, match=r"numeric lr.*got None"):
        optimizer.add_param_group({"params": setup.weights.parameters()[0], "lr": None})
    base.param_groups[0]["lr"] = None
    setup.backward()
    before = setup.weights.snapshot()
    with pytest.raises(TypeError, match=r"numeric lr"):
        optimizer.step()
    assert all(
        torch.equal(tensor, before[name][key])
        for name, own in setup.weights.snapshot().items()
        for key, tensor in own.items()
    )


def test_inference_mode_is_refused(make_setup, assert_same):
    setup = make_setup()
    optimizer = ste(Adam(setup.model.parameters(), lr=0.1), setup.weights)
    setup.backward()
    before = kept(setup, optimizer)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        optimizer.step()
    assert_same(kept(setup, optimizer), before)
    with torch.inference_mode():
        model = nn.Linear(4, 4)
        weights = quantize_(model, UniformGrid(bits=2))
    with pytest.raises(TypeError, match=r"'weight' was made in torch.inference_mode"):
        PVOptimizer(SGD(model.parameters(), lr=0.1), weights)


def test_a_captured_step_is_refused(make_setup, monkeypatch):
    setup = make_setup()
    optimizer = ste(Adam(setup.model.parameters(), lr=0.1), setup.weights)
    setup.backward()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA graph"):
        optimizer.step()
