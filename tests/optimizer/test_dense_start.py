"""Latent weights that begin at the dense weights, which ``quantize_`` keeps on request."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pvopt import (
    AdditiveCodebooks,
    Parametrization,
    PVOptimizer,
    QuantizedWeights,
    Sparse,
    UniformGrid,
    continuous_only,
    quantize_,
    ste,
    subspace_pv,
)

GRID = UniformGrid(bits=2)


class Problem:
    """Two layers whose dense weights were kept, and what these were."""

    def __init__(
        self, parametrization: Parametrization = GRID, dtype: torch.dtype = torch.float32
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)).to(dtype)
        self.dense = {n: p.detach().clone() for n, p in self.model.named_parameters() if p.ndim > 1}
        self.weights = quantize_(self.model, parametrization, keep_dense=True)

    def base(self, lr: float = 0.01) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=lr)

    def backward(self) -> None:
        self.model.zero_grad()
        dtype = next(self.model.parameters()).dtype
        inputs = torch.linspace(-1, 1, 40).view(5, 8).to(dtype)
        self.model(inputs).float().square().sum().backward()

    def step(self, optimizer: PVOptimizer, count: int = 1) -> None:
        for _ in range(count):
            self.backward()
            optimizer.step()
            self.weights.check()


def latents(optimizer: PVOptimizer) -> dict[str, Tensor]:
    return {b.name: b.state["latent"].clone() for b in optimizer._bindings if "latent" in b.state}


def decoded(problem: Problem) -> dict[str, Tensor]:
    return {name: rep.decode() for name, rep in problem.weights.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "parametrization",
    [GRID, AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2), Sparse(density=0.5)],
    ids=str,
)
def test_latents_begin_at_the_dense_weights_and_stay_there(parametrization, dtype, assert_same):
    problem = Problem(parametrization, dtype)
    optimizer = ste(problem.base(lr=1e-6), problem.weights)
    dense = {name: weight.float() for name, weight in problem.dense.items()}
    assert_same(latents(optimizer), dense)
    problem.step(optimizer)
    for name, latent in latents(optimizer).items():
        # One step of Adam is of length 1e-6; another half for the rounding of the sum.
        torch.testing.assert_close(latent, dense[name], atol=1.5e-6, rtol=0)


def test_nothing_is_kept_without_being_asked(assert_same):
    problem = Problem()
    problem.weights = quantize_(problem.model, GRID)
    assert all(problem.weights.start(name) is None for name in problem.weights)
    assert_same(latents(ste(problem.base(), problem.weights)), decoded(problem))


@pytest.mark.parametrize(
    "finish",
    [
        lambda p: ste(p.base(), p.weights),
        lambda p: subspace_pv(p.base(), p.weights),
        lambda p: continuous_only(p.base(), p.weights),
        lambda p: p.weights.forget_dense(),
    ],
    ids=["ste", "subspace_pv", "continuous_only", "forget_dense"],
)
def test_dense_weights_are_let_go_of_once(finish, assert_same):
    problem = Problem()
    starts = [problem.weights.start(name) for name in problem.weights]
    assert all(start is not None and start.weight is not None for start in starts)
    finish(problem)
    assert all(start is not None and start.weight is None for start in starts)
    assert_same(latents(ste(problem.base(), problem.weights)), decoded(problem))


def clamp(problem: Problem) -> None:
    for p in problem.weights.parameters():
        p.data.clamp_(-0.05, 0.05)
    problem.weights.refit_()


def restore(problem: Problem) -> None:
    other = QuantizedWeights(
        problem.model, {n: GRID.fit(w.flip(0)) for n, w in problem.dense.items()}
    )
    problem.weights.restore(other.snapshot())


def scale(problem: Problem) -> None:
    for rep in problem.weights.values():
        rep.values["scales"].mul_(1.1)
    problem.weights.write_()


def one_code(problem: Problem) -> None:
    for rep in problem.weights.values():
        rep.codes["levels"].view(-1)[0] ^= 1
    problem.weights.write_()


@pytest.mark.parametrize("change", [clamp, restore, scale, one_code])
@pytest.mark.parametrize("when", ["before", "after"])
def test_other_codes_or_values_begin_at_themselves(change, when, assert_same):
    """Before an optimizer is made or after it."""
    problem = Problem()
    if when == "before":
        change(problem)
    optimizer = ste(problem.base(lr=1e-6), problem.weights)
    if when == "after":
        change(problem)
    before = decoded(problem)
    problem.step(optimizer)
    for name, latent in latents(optimizer).items():
        torch.testing.assert_close(latent, before[name], atol=1.5e-6, rtol=0)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda both: pickle.loads(pickle.dumps(both)),
}


@pytest.mark.parametrize("how", list(COPIES))
@pytest.mark.parametrize("what", ["weights", "optimizer"])
def test_copies_have_the_dense_weights_too(how, what, assert_same):
    problem = Problem()
    twin = copy.copy(problem)
    if what == "weights":
        twin.model, twin.weights = COPIES[how]((problem.model, problem.weights))
        optimizer = ste(problem.base(), problem.weights)
        other = ste(twin.base(), twin.weights)
    else:
        optimizer = ste(problem.base(), problem.weights)
        whole = (problem.model, problem.weights, optimizer)
        twin.model, twin.weights, other = COPIES[how](whole)
    problem.step(optimizer, 3)
    twin.step(other, 3)
    assert_same(other.state_dict(), optimizer.state_dict())
    assert_same(dict(twin.model.state_dict()), dict(problem.model.state_dict()))


def test_a_state_from_before_the_first_step_resumes_at_the_dense_weights(assert_same):
    problem, twin = Problem(), Problem()
    optimizer = ste(problem.base(), problem.weights)
    model, saved = copy.deepcopy((problem.model.state_dict(), optimizer.state_dict()))
    resumed = ste(twin.base(), twin.weights)
    twin.step(resumed, 2)
    twin.model.load_state_dict(model)
    resumed.load_state_dict(saved)
    problem.step(optimizer, 3)
    twin.step(resumed, 3)
    assert_same(resumed.state_dict(), optimizer.state_dict())


def test_each_optimizer_takes_those_of_its_own_weights(assert_same):
    problem = Problem()
    first, second = problem.weights.parameters()
    one = ste(torch.optim.SGD([first], lr=1e-3), problem.weights)
    start = problem.weights.start("2.weight")
    assert start is not None
    assert start.weight is not None
    two = ste(torch.optim.Adam([second], lr=1e-3), problem.weights)
    assert_same(
        {one.bindings_by_id()[id(first)].name: one.bindings_by_id()[id(first)].state["latent"]}
        | {"2.weight": two.bindings_by_id()[id(second)].state["latent"]},
        problem.dense,
    )


def test_a_group_that_is_added_later_begins_there(assert_same):
    problem = Problem()
    first, second = problem.weights.parameters()
    optimizer = ste(torch.optim.SGD([first], lr=1e-3), problem.weights)
    optimizer.add_param_group({"params": [second]})
    assert_same(latents(optimizer), problem.dense)


def test_a_first_step_that_fails_leaves_them(assert_same):
    problem = Problem()

    class Failing(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            raise ArithmeticError

    optimizer = ste(Failing(problem.model.parameters(), lr=0.1), problem.weights)
    problem.backward()
    with pytest.raises(ArithmeticError):
        optimizer.step()
    assert_same(latents(optimizer), problem.dense)


def test_broadcast_forgets_them_on_every_process(monkeypatch, assert_same):
    """Or the latent weights of processes would differ, and their codes after them."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 1)
    gathered = lambda found, own, group=None: found.__setitem__(0, own)  # noqa: E731
    monkeypatch.setattr(dist, "all_gather_object", gathered)
    monkeypatch.setattr(dist, "broadcast", lambda tensor, src, group: None)
    for when in ("before", "after"):
        problem = Problem()
        if when == "before":
            problem.weights.broadcast_()
        optimizer = ste(problem.base(lr=1e-6), problem.weights)
        if when == "after":
            problem.weights.broadcast_()
        before = decoded(problem)
        problem.step(optimizer)
        for name, latent in latents(optimizer).items():
            torch.testing.assert_close(latent, before[name], atol=1.5e-6, rtol=0)


@pytest.mark.parametrize(
    ("dense", "words"),
    [
        ({"0.bias": torch.zeros(6)}, r"\[6\] for '0.bias'"),
        ({"0.weight": torch.zeros(8, 6)}, r"\[8, 6\] for '0.weight'"),
    ],
)
def test_dense_weights_of_other_shapes_or_names_are_refused(dense, words):
    problem = Problem()
    with pytest.raises(ValueError, match=f"dense must hold .*{words}"):
        QuantizedWeights(problem.model, dict(problem.weights), dense=dense)


def test_codes_of_a_file_begin_at_dense_weights_that_are_given(assert_same):
    problem = Problem()
    weights = QuantizedWeights(problem.model, dict(problem.weights), dense=problem.dense)
    assert_same(latents(ste(problem.base(), weights)), problem.dense)
