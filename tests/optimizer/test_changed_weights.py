"""Somebody else writes into the model: noticed before a step or a save, and how to go on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import prune

from pvopt import (
    AllGroups,
    PVOptimizer,
    QuantizedWeights,
    SharedValues,
    UniformGrid,
    WeightsChangedError,
    formats,
    layers,
    quantize_,
    ste,
)

NAME = "0.weight"


def adam(setup: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(setup.model.parameters(), lr=0.05)


def run(setup: Any, optimizer: PVOptimizer, steps: int) -> None:
    for _ in range(steps):
        setup.backward()
        optimizer.step()
        setup.check_decoded()


def everything(setup: Any, optimizer: PVOptimizer) -> Any:
    return copy.deepcopy((dict(setup.model.state_dict()), optimizer.state_dict()))


@torch.no_grad()
def load(setup: Any) -> None:
    state = setup.model.state_dict()
    setup.model.load_state_dict({k: v + 0.5 if k == NAME else v for k, v in state.items()})


@torch.no_grad()
def assign(setup: Any) -> None:
    state = setup.model.state_dict()
    changed = {k: v + 0.5 if k == NAME else v for k, v in state.items()}
    setup.model.load_state_dict(changed, assign=True)


@torch.no_grad()
def one_entry(setup: Any) -> None:
    setup.weights.parameter(NAME)[3, 4] += 0.125


CHANGES: dict[str, Callable[[Any], object]] = {
    "load_state_dict": load,
    "assigned": assign,
    "clamp": lambda s: torch.no_grad()(s.weights.parameter(NAME).clamp_)(-0.1, 0.1),
    "clamp of data": lambda s: s.weights.parameter(NAME).data.clamp_(-0.1, 0.1),
    "new data": lambda s: setattr(s.weights.parameter(NAME), "data", torch.ones(6, 8)),
    "numpy": lambda s: s.weights.parameter(NAME).detach().numpy().fill(0.5),
    "one entry": one_entry,
    "not a number": lambda s: s.weights.parameter(NAME).data.fill_(torch.nan),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("latent_decay", [0.0, 1.0])
def test_a_step_refuses_changed_weights_and_changes_nothing(
    make_setup, assert_same, change, latent_decay
):
    setup = make_setup()
    optimizer = PVOptimizer(adam(setup), setup.weights, latent_decay=latent_decay)
    run(setup, optimizer, 2)
    setup.backward()
    gradients = {name: p.grad for name, p in setup.model.named_parameters()}
    CHANGES[change](setup)
    if change == "assigned":  # the optimizer has to be told of new parameters, as in plain torch
        optimizer.param_groups[0]["params"] = list(setup.model.parameters())
        for name, p in setup.model.named_parameters():
            p.grad = gradients[name]
    before = everything(setup, optimizer) if change != "assigned" else None
    with pytest.raises(WeightsChangedError, match=r"^'0.weight': .*weights.refit_\(\)"):
        optimizer.step()
    with pytest.raises(WeightsChangedError, match=r"'0.weight'"):
        setup.weights.check()
    if before is not None and change != "not a number":
        assert_same(everything(setup, optimizer), before)
    setup.weights.write_()  # back to the codes
    setup.weights.check()
    run(setup, optimizer, 1)


def test_a_change_of_some_rows_of_a_large_weight_is_noticed_without_versions():
    """A sample has entries of every row and of every column."""
    for shape in ((70, 90), (20, 300), (400, 12)):
        weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        rep = UniformGrid(bits=2).fit(weight)
        weight.data.copy_(rep.decode())
        optimizer = PVOptimizer(torch.optim.SGD([weight], lr=1e-3), {weight: rep})
        for dim in (0, 1):
            for place in (0, shape[dim] // 2, shape[dim] - 1):
                weight.grad = torch.ones(shape)
                optimizer.step()
                weight.data.select(dim, place).mul_(-1)
                with pytest.raises(WeightsChangedError, match=r"'parameter 0'"):
                    optimizer.step()
                weight.data.copy_(rep.decode())


def test_weights_that_were_put_back_are_no_change(make_setup, assert_same):
    """As SAM does, and Accelerate, which makes new parameters."""
    setup, twin = make_setup(), make_setup()
    one, two = ste(adam(setup), setup.weights), ste(adam(twin), twin.weights)
    run(setup, one, 2)
    run(twin, two, 2)
    with torch.no_grad():
        for p in setup.weights.parameters():
            kept = p.clone()
            p.add_(0.1)
            p.copy_(kept)
    run(setup, one, 2)
    run(twin, two, 2)
    assert_same(one.state_dict(), two.state_dict())
    with torch.no_grad():
        for p in setup.weights.parameters():
            p.add_(0.1).sub_(0.1)  # up to rounding
    setup.weights.check()
    run(setup, one, 1)


def test_the_first_step_wants_the_decoded_weights_too(make_setup):
    setup = make_setup()
    foreign = make_setup(seed=1)
    weights = QuantizedWeights(foreign.model, dict(setup.weights))
    optimizer = PVOptimizer(adam(foreign), weights)
    foreign.backward()
    with pytest.raises(WeightsChangedError, match=r"'0.weight', '2.weight'"):
        optimizer.step()


def test_the_representations_of_another_model_are_refused(make_setup):
    setup = make_setup()
    other = copy.deepcopy(setup.model)
    with pytest.raises(ValueError, match=r"none of .* is a parameter of base.*deepcopy"):
        PVOptimizer(torch.optim.Adam(other.parameters(), lr=0.1), setup.weights)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    with pytest.raises(WeightsChangedError, match=r"'0.weight', '2.weight'"):
        formats.save("unused", other, setup.weights)


def test_weights_that_were_tied_since_are_named(assert_same):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    weights = quantize_(model, UniformGrid(bits=2))
    optimizer = ste(torch.optim.SGD(model.parameters(), lr=0.1), weights)
    before = weights.snapshot()
    model[1].weight = model[0].weight
    model(torch.ones(1, 8)).sum().backward()
    with pytest.raises(WeightsChangedError, match=r"'0.weight' and '1.weight' are one"):
        optimizer.step()
    assert_same(weights.snapshot(), before)


@pytest.mark.parametrize("what", ["codes", "values"])
@pytest.mark.parametrize("latent_decay", [0.0, 1.0])
def test_a_step_refuses_codes_and_values_that_were_not_written(make_setup, what, latent_decay):
    """Their weights are not those that the gradient is of; a latent weight would undo the edit."""
    setup = make_setup(UniformGrid(bits=2))
    base = torch.optim.SGD(setup.model.parameters(), lr=0.05)
    optimizer = PVOptimizer(base, setup.weights, latent_decay=latent_decay)
    run(setup, optimizer, 2)
    for tensor in getattr(setup.weights[NAME], what).values():
        tensor.copy_(tensor.flip(0))
    setup.backward()
    with pytest.raises(WeightsChangedError, match=r"^'0.weight': .*weights.write_\(\)"):
        optimizer.step()
    before = setup.weights.snapshot()
    setup.weights.write_()
    for p in setup.weights.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()  # begins at what was edited
    assert torch.equal(setup.weights[NAME].decode(), setup.weights.parameter(NAME))
    for key, tensor in before[NAME].items():
        assert torch.equal(dict(setup.weights[NAME].tensors())[key], tensor)


@pytest.mark.parametrize("change", ["assign", "layer"])
def test_a_new_parameter_that_no_group_has_is_named(make_setup, assert_same, change):
    """It would never move, while the optimizer goes on with the old one."""
    setup = make_setup()
    optimizer = ste(adam(setup), setup.weights)
    run(setup, optimizer, 1)
    if change == "assign":
        setup.model.load_state_dict(copy.deepcopy(setup.model.state_dict()), assign=True)
    else:
        setup.model[0] = nn.Linear(8, 6)
    before = everything(setup, optimizer)
    setup.backward()
    with pytest.raises(
        WeightsChangedError, match=r"^'0.weight'.* has a new parameter in its place"
    ):
        optimizer.step()
    assert_same(everything(setup, optimizer), before)
    setup.weights.refit_()
    run(setup, ste(adam(setup), setup.weights), 2)


@pytest.mark.parametrize("change", ["prune", "resize", "to_quantized"])
def test_a_weight_that_has_gone_is_named(make_setup, change):
    setup = make_setup()
    optimizer = PVOptimizer(adam(setup), setup.weights)
    setup.backward()
    if change == "prune":
        prune.l1_unstructured(setup.model[0], "weight", 0.5)
    elif change == "resize":
        setup.model[0].weight = nn.Parameter(torch.zeros(7, 8))
    else:
        layers.to_quantized(setup.model, setup.weights)
    with pytest.raises(WeightsChangedError, match=r"'0.weight'"):
        optimizer.step()
    if change == "prune":
        prune.remove(setup.model[0], "weight")
        assert list(setup.weights.refit_()) == ["0.weight"]
        setup.check_decoded()


def test_a_save_and_packed_layers_refuse_changed_weights(make_setup, tmp_path):
    setup = make_setup()
    setup.weights.parameter(NAME).data.mul_(1.01)
    with pytest.raises(WeightsChangedError, match=r"'0.weight'"):
        formats.save(tmp_path / "model", setup.model, setup.weights)
    assert not list(tmp_path.iterdir())
    with pytest.raises(WeightsChangedError, match=r"'0.weight'"):
        layers.to_quantized(setup.model, setup.weights)
    assert isinstance(setup.model[0], nn.Linear)


def test_the_best_epoch_comes_back_with_its_codes(make_setup, assert_same, tmp_path):
    setup = make_setup()
    optimizer = ste(adam(setup), setup.weights)
    run(setup, optimizer, 3)
    best, codes = copy.deepcopy(setup.model.state_dict()), setup.weights.snapshot()
    run(setup, optimizer, 3)
    setup.model.load_state_dict(best)
    setup.weights.restore(codes)
    assert_same(dict(setup.model.state_dict()), dict(best))
    assert_same(setup.weights.snapshot(), codes)
    saved = formats.save(tmp_path / "best", setup.model, setup.weights)
    again = formats.load(saved, make_setup(seed=3).model).model
    assert_same(dict(again.state_dict()), dict(best))
    # The latents of later steps are gone: the next step starts at the best weights.
    decoded = {n: rep.decode() for n, rep in setup.weights.items()}
    for group in optimizer.param_groups:
        group["lr"] = 1e-6
    run(setup, optimizer, 1)
    for name, p, _ in optimizer.named_representations():
        latent = optimizer.state[p]["pv.latent"]
        # Adam's longest update is (1 - 0.9) / (1 - 0.999) ** 0.5 = 3.2 rates of 1e-6.
        torch.testing.assert_close(latent, decoded[name], atol=4e-6, rtol=0)
        assert optimizer.state[p]["pv.values_step"] == 1


@pytest.mark.parametrize("first", ["model", "optimizer"])
def test_model_and_optimizer_are_loaded_in_either_order(make_setup, assert_same, first):
    setup, other = make_setup(), make_setup(seed=3)
    one, two = ste(adam(setup), setup.weights), ste(adam(other), other.weights)
    run(setup, one, 2)
    run(other, two, 1)
    model, optimizer = copy.deepcopy((setup.model.state_dict(), one.state_dict()))
    parts = [lambda: other.model.load_state_dict(model), lambda: two.load_state_dict(optimizer)]
    for part in parts if first == "model" else reversed(parts):
        part()
    run(setup, one, 2)
    run(other, two, 2)
    assert_same(one.state_dict(), two.state_dict())


def broken(snapshot: dict[str, dict[str, Tensor]], how: str) -> dict[str, dict[str, Tensor]]:
    if how == "missing":
        del snapshot[NAME]
    elif how == "shape":
        snapshot[NAME]["codes.levels"] = snapshot[NAME]["codes.levels"][:2]
    elif how == "dtype":
        snapshot[NAME]["codes.levels"] = snapshot[NAME]["codes.levels"].float()
    else:
        snapshot[NAME]["codes.levels"][0] = 77
    return snapshot


@pytest.mark.parametrize("how", ["missing", "shape", "dtype", "range"])
def test_a_foreign_snapshot_is_refused_and_changes_nothing(make_setup, assert_same, how):
    setup = make_setup(UniformGrid(bits=2))
    before = setup.weights.snapshot()
    with pytest.raises(ValueError, match=r"\S"):
        setup.weights.restore(broken(setup.weights.snapshot(), how))
    assert_same(setup.weights.snapshot(), before)


@pytest.mark.parametrize("parametrization", [SharedValues(num_values=4), UniformGrid(bits=2)])
def test_refit_takes_what_the_model_holds(make_setup, assert_same, parametrization):
    setup = make_setup(parametrization)
    optimizer = ste(adam(setup), setup.weights)
    run(setup, optimizer, 3)
    assert setup.weights.refit_() == {}
    best = copy.deepcopy(setup.model.state_dict())
    run(setup, optimizer, 5)
    still = dict(setup.weights["2.weight"].clone().tensors())
    with torch.no_grad():
        setup.weights.parameter(NAME).copy_(best[NAME])
    errors = setup.weights.refit_()
    # Weights that codes can say are said exactly, as far as a fit of these few can find them.
    assert list(errors) == [NAME]
    assert errors[NAME] < 0.02
    assert_same(dict(setup.weights["2.weight"].tensors()), still)
    setup.check_decoded()
    run(setup, optimizer, 2)


def test_refit_is_never_worse_than_the_nearest_codes_and_refuses_what_is_not_finite(make_setup):
    setup = make_setup(SharedValues(num_values=4))
    target = torch.randn(6, 8, generator=torch.Generator().manual_seed(4))
    values = setup.weights[NAME].values["values"]
    nearest = (target[..., None] - values).abs().min(-1).values.square().sum()
    setup.weights.parameter(NAME).data.copy_(target)
    found = setup.weights.refit_()[NAME]
    assert found * float(target.square().sum()) <= float(nearest) * (1 + 1e-6)
    before = setup.weights.snapshot()
    setup.weights.parameter(NAME).data[0, 0] = torch.inf
    setup.weights.parameter("2.weight").data.mul_(2)
    with pytest.raises(ValueError, match=r"cannot quantize '0.weight': weight must be finite"):
        setup.weights.refit_()
    assert all(
        torch.equal(t, before[n][k])
        for n, own in setup.weights.snapshot().items()
        for k, t in own.items()
    )


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_an_average_ends_quantized(make_setup, kind, tmp_path):
    """The average of quantized weights is not quantized; its nearest codes are."""
    setup = make_setup(UniformGrid(bits=3))
    optimizer = PVOptimizer(adam(setup), setup.weights, subspace=AllGroups(), latent_decay=0.0)
    multi = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9) if kind == "ema" else None
    average = torch.optim.swa_utils.AveragedModel(setup.model, multi_avg_fn=multi)
    first = setup.loss().item()
    for _ in range(15):
        run(setup, optimizer, 1)
        average.update_parameters(setup.model)
    setup.model.load_state_dict(average.module.state_dict())
    setup.weights.refit_()
    setup.check_decoded()
    assert setup.loss().item() < first
    formats.save(tmp_path / "average", setup.model, setup.weights)


def test_broadcast_needs_processes_and_equal_settings(make_setup, monkeypatch):
    setup = make_setup()
    with pytest.raises(RuntimeError, match="init_process_group"):
        setup.weights.broadcast_()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    other = make_setup(UniformGrid(bits=2))

    def gather(found: list[Any], own: Any, group: Any = None) -> None:
        found[:] = [own, {**own, NAME: "another"}]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    with pytest.raises(ValueError, match=r"process 1 .*'0.weight'"):
        other.weights.broadcast_()


def test_every_process_gets_codes_and_values_of_one(make_setup, assert_same, monkeypatch):
    """As the second of two processes that began with different weights sees it.

    DDP has given it the parameters of the first, which are not what its codes decode to.
    """
    first, second = make_setup(), make_setup(seed=1)
    second.model.load_state_dict(first.model.state_dict())
    one, two = ste(adam(first), first.weights), ste(adam(second), second.weights)
    second.backward()
    with pytest.raises(WeightsChangedError, match=r"'0.weight', '2.weight'"):
        two.step()
    sent = iter([t for rep in first.weights.values() for _, t in rep.tensors()])
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)

    def agree(found: list[Any], own: Any, group: Any = None) -> None:
        found[:] = [own, own]

    monkeypatch.setattr(dist, "all_gather_object", agree)

    def receive(tensor: Tensor, src: int, group: Any) -> None:
        assert (src, tensor.dtype) == (0, torch.uint8)
        tensor.copy_(next(sent).contiguous().view(-1).view(torch.uint8))

    monkeypatch.setattr(dist, "broadcast", receive)
    second.weights.broadcast_()
    second.check_decoded()
    run(first, one, 2)
    run(second, two, 2)
    assert_same(one.state_dict(), two.state_dict())
