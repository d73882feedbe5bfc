"""State dicts, resuming, copies, and the tools that move states about."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pvopt import (
    AdamValues,
    AdditiveCodebooks,
    AllGroups,
    Alternate,
    FitOptions,
    Forced,
    Greedy,
    Nearest,
    Proportional,
    PVOptimizer,
    SGDValues,
    SharedValues,
    Stochastic,
    Uniform,
    UniformGrid,
    quantize_,
    stochastic_rounding,
)

BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
}
# Together they cover every random draw, every kind of latent and both value optimizers.
OPTIONS: dict[str, dict[str, Any]] = {
    "latent": {"subspace": Greedy(0.3), "latent_decay": 0.0, "trust_ratio": 0.2},
    "stochastic": {"rounding": Stochastic(), "subspace": AllGroups()},
    "proportional": {"subspace": Proportional(0.4), "latent_decay": 0.3},
    "uniform-forced": {"subspace": Uniform(0.2), "rounding": Forced()},
    "alternate": {"phases": Alternate(p=2, v=1), "values": SGDValues(momentum=0.9)},
}


def make(setup: Any, base: str = "adam", options: str = "latent", seed: int = 0) -> PVOptimizer:
    return PVOptimizer(
        BASES[base](setup.model.parameters()), setup.weights, **OPTIONS[options], seed=seed
    )


def run(setup: Any, optimizer: PVOptimizer, steps: int) -> None:
    for _ in range(steps):
        setup.backward()
        optimizer.step()
        setup.check_decoded()


def through_file(state: Any) -> Any:
    """Save and load as any loader does that trusts nobody."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("base", list(BASES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", list(OPTIONS))
def test_a_resumed_run_is_bit_exact(make_setup, assert_same, base, dtype, options):
    """Weights, codes, values, moments, latents and draws; into a model that started elsewhere."""
    straight = make_setup(dtype=dtype)
    one = make(straight, base, options)
    run(straight, one, 4)
    saved = through_file({"model": straight.model.state_dict(), "optimizer": one.state_dict()})
    run(straight, one, 4)

    resumed = make_setup(dtype=dtype, seed=5)
    two = make(resumed, base, options)
    resumed.model.load_state_dict(saved["model"])
    two.load_state_dict(saved["optimizer"])
    assert_same(two.state_dict(), saved["optimizer"])
    run(resumed, two, 4)
    assert_same(dict(straight.model.state_dict()), dict(resumed.model.state_dict()))
    assert_same(one.state_dict(), two.state_dict())
    for name, rep in straight.weights.items():
        assert_same(dict(rep.tensors()), dict(resumed.weights[name].tensors()))


def test_the_state_holds_tensors_and_primitives_only(make_setup):
    setup = make_setup(dtype=torch.bfloat16)
    optimizer = make(setup)
    run(setup, optimizer, 2)
    state = optimizer.state_dict()

    def check(value: Any) -> None:
        if isinstance(value, dict):
            assert type(value) is dict
            for key, inner in value.items():
                assert isinstance(key, str | int)
                check(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                check(inner)
        else:
            assert value is None or isinstance(value, Tensor | int | float | str | bool)

    check(state)
    entries = state["state"][0]
    assert torch.equal(entries["pv.codes.entries"], setup.weights["0.weight"].codes["entries"])
    assert entries["pv.codes.entries"].dtype == torch.uint8
    assert {"exp_avg", "pv.latent", "pv.values.scales", "pv.step"} <= set(entries)


def test_a_fresh_optimizer_saves_its_codes(make_setup, assert_same):
    setup, other = make_setup(), make_setup(seed=9)
    state = through_file(make(setup).state_dict())
    optimizer = make(other)
    optimizer.load_state_dict(state)
    other.check_decoded()
    for p, q in zip(setup.weights.parameters(), other.weights.parameters(), strict=True):
        assert torch.equal(p, q)
    # Adam must not take the parameters for initialised
    run(other, optimizer, 2)


def test_loading_decodes_into_the_present_model_and_keeps_identities(make_setup):
    setup, other = make_setup(), make_setup(seed=3)
    one, two = make(setup), make(other)
    run(setup, one, 3)
    tensors = {name: dict(rep.tensors()) for name, rep in other.weights.items()}
    parameters = other.weights.parameters()
    two.load_state_dict(one.state_dict())
    for name, rep in other.weights.items():
        assert torch.equal(other.weights.parameter(name), setup.weights.parameter(name))
        for key, tensor in rep.tensors():
            assert tensor is tensors[name][key]
    assert all(p is q for p, q in zip(parameters, other.weights.parameters(), strict=True))
    run(setup, one, 2)  # and nothing is shared with the other
    other.check_decoded()


def test_loading_ones_own_state_changes_nothing(make_setup, assert_same):
    setup = make_setup()
    optimizer = make(setup)
    run(setup, optimizer, 3)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(optimizer.state_dict())
    assert_same(optimizer.state_dict(), before)
    setup.check_decoded()


def test_loaded_groups_rule_and_stay_shared_with_the_base(make_setup):
    setup, other = make_setup(), make_setup()
    one, two = make(setup), make(other)
    one.param_groups[0].update(lr=0.125, fraction=0.75, freeze_values=True)
    two.load_state_dict(through_file(one.state_dict()))
    group = two.param_groups[0]
    assert group is two.base.param_groups[0]
    assert (group["lr"], group["fraction"], group["freeze_values"]) == (0.125, 0.75, True)


def test_a_scheduler_still_drives_a_loaded_optimizer(make_setup):
    setup, other = make_setup(), make_setup()
    one, two = make(setup), make(other)
    run(setup, one, 1)
    two.load_state_dict(one.state_dict())
    scheduler = LambdaLR(two, lambda step: 0.5**step)
    for _ in range(2):
        other.backward()
        two.step()
        scheduler.step()
    assert two.base.param_groups[0]["lr"] == 0.05 * 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", list(OPTIONS))
@pytest.mark.parametrize("clone", ["deepcopy", "pickle"])
def test_a_copy_of_model_and_optimizer_continues_identically(
    make_setup, assert_same, options, dtype, clone
):
    setup = make_setup(dtype=dtype)
    optimizer = make(setup, options=options)
    run(setup, optimizer, 3)
    pair = (setup, optimizer)
    other, twin = copy.deepcopy(pair) if clone == "deepcopy" else pickle.loads(pickle.dumps(pair))
    frozen = copy.deepcopy(dict(setup.model.state_dict()))
    run(other, twin, 3)
    assert_same(dict(setup.model.state_dict()), frozen)  # the original did not move
    run(setup, optimizer, 3)
    assert_same(dict(setup.model.state_dict()), dict(other.model.state_dict()))
    assert_same(optimizer.state_dict(), twin.state_dict())
    assert twin.param_groups is twin.base.param_groups


def test_a_copy_of_the_optimizer_alone_brings_its_own_model(make_setup, assert_same):
    setup = make_setup()
    optimizer = make(setup)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)  # wraps step on the instance
    run(setup, optimizer, 2)
    scheduler.step()
    twin = copy.deepcopy(optimizer)
    before = copy.deepcopy(dict(setup.model.state_dict()))
    model = twin.representations.model
    parameters = {id(p) for group in twin.param_groups for p in group["params"]}
    assert {id(p) for p in model.parameters()} == parameters
    for steps in range(3):
        model.zero_grad()
        (model(setup.inputs) - setup.targets).square().mean().backward()
        twin.step()
        for name, p, rep in twin.named_representations():
            assert torch.equal(p, rep.decode()), (name, steps)
    assert_same(dict(setup.model.state_dict()), before)
    run(setup, optimizer, 3)
    assert_same(dict(setup.model.state_dict()), dict(model.state_dict()))


def broken(state: dict[str, Any], kind: str) -> dict[str, Any]:
    state = copy.deepcopy(state)
    entries = state["state"][0]
    if kind == "plain adam":
        for own in state["state"].values():
            for key in [key for key in own if key.startswith("pv.")]:
                del own[key]
    elif kind == "no codes":
        del entries["pv.codes.entries"]
    elif kind == "other shape":
        entries["pv.codes.entries"] = entries["pv.codes.entries"][:, :2]
    elif kind == "floating codes":
        entries["pv.codes.entries"] = entries["pv.codes.entries"].float()
    elif kind == "codes out of range":
        entries["pv.codes.entries"][0, 0, 0] = 4
    elif kind == "other values":
        entries["pv.values.codebooks"] = entries["pv.values.codebooks"][:, :, :1]
    elif kind == "no state":
        state["state"] = {}
    elif kind == "fewer parameters":
        state["param_groups"][0]["params"].pop()
    elif kind == "more groups":
        state["param_groups"].append(copy.deepcopy(state["param_groups"][0]))
    elif kind == "bad option":
        state["param_groups"][0]["latent_decay"] = 7.0
    return state


@pytest.mark.parametrize(
    "kind",
    [
        "plain adam",
        "no codes",
        "other shape",
        "floating codes",
        "codes out of range",
        "other values",
        "no state",
        "fewer parameters",
        "more groups",
        "bad option",
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(make_setup, assert_same, kind):
    setup, other = make_setup(), make_setup(seed=4)
    one, two = make(setup), make(other)
    run(setup, one, 2)
    run(other, two, 1)
    before = copy.deepcopy((dict(other.model.state_dict()), two.state_dict()))
    with pytest.raises(ValueError, match=r"\S"):
        two.load_state_dict(broken(one.state_dict(), kind))
    assert_same((dict(other.model.state_dict()), two.state_dict()), before)
    run(other, two, 1)


def test_the_state_of_another_grid_is_refused(make_setup):
    four, two = make_setup(UniformGrid(bits=4)), make_setup(UniformGrid(bits=2))
    with pytest.raises(ValueError, match=r"'0.weight'.*UniformGrid\(bits=2"):
        make(two).load_state_dict(make(four).state_dict())
    two.check_decoded()


def test_the_fraction_of_another_rule_is_refused_and_changes_nothing(make_setup, assert_same):
    setup, other = make_setup(), make_setup(seed=4)
    one = make(setup)
    two = PVOptimizer(BASES["adam"](other.model.parameters()), other.weights, subspace=AllGroups())
    run(setup, one, 1)
    before = copy.deepcopy((dict(other.model.state_dict()), two.state_dict()))
    with pytest.raises(ValueError, match="fraction must be None with AllGroups"):
        two.load_state_dict(one.state_dict())
    assert_same((dict(other.model.state_dict()), two.state_dict()), before)


def test_a_run_may_go_on_with_another_optimizer_of_values(make_setup):
    setup, other = make_setup(), make_setup()
    one = PVOptimizer(BASES["adam"](setup.model.parameters()), setup.weights, values=SGDValues())
    two = PVOptimizer(BASES["adam"](other.model.parameters()), other.weights, values=AdamValues())
    run(setup, one, 2)
    two.load_state_dict(one.state_dict())
    run(other, two, 2)


def test_a_run_may_go_on_without_a_latent_and_with_one(make_setup):
    setup, other = make_setup(), make_setup()
    one, two = make(setup), make(other, options="stochastic")
    run(setup, one, 2)
    run(other, two, 2)
    states = copy.deepcopy((one.state_dict(), two.state_dict()))
    for state in states:  # the options of the group would come along with the state
        state["param_groups"][0].update(latent_decay=0.5, fraction=None)
    for state in states:
        third = make_setup()
        optimizer = PVOptimizer(
            BASES["adam"](third.model.parameters()), third.weights, subspace=AllGroups()
        )
        optimizer.load_state_dict(state)
        run(third, optimizer, 2)


def test_state_dict_hooks_run(make_setup):
    setup = make_setup()
    optimizer = make(setup)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "mark": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda o, state: {k: v for k, v in state.items() if k != "mark"}
    )
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))
    state = optimizer.state_dict()
    assert state["mark"] == 1
    optimizer.load_state_dict(state)
    assert calls == ["pre", "loaded"]


def test_the_seed_decides_the_draws(make_setup, assert_same):
    results = []
    for seed in (0, 0, 1):
        setup = make_setup()
        state = torch.get_rng_state()
        run(setup, make(setup, options="stochastic", seed=seed), 3)
        assert torch.equal(state, torch.get_rng_state())
        results.append({name: rep.group_codes().clone() for name, rep in setup.weights.items()})
    assert_same(results[0], results[1])
    assert any(not torch.equal(results[0][name], results[2][name]) for name in results[0])


def test_draws_do_not_depend_on_the_other_parameters(make_setup, assert_same):
    """A weight's draws come from its name, its seed and its number of steps."""
    whole, alone = make_setup(), make_setup()
    one = make(whole, "sgd", "stochastic")
    first = alone.weights.parameter("0.weight")
    two = PVOptimizer(BASES["sgd"]([first]), alone.weights, **OPTIONS["stochastic"])
    whole.backward()
    alone.backward()
    one.step()
    two.step()
    assert_same(whole.weights["0.weight"].codes, alone.weights["0.weight"].codes)


def test_every_step_and_every_weight_draws_anew():
    """Two equal weights, put back to the same start after each step."""
    rule = Stochastic("linear")
    weights = [nn.Parameter(torch.zeros(200)) for _ in range(2)]
    reps = {
        weight: SharedValues(num_values=2).fit(torch.arange(200.0) // 100) for weight in weights
    }
    base = torch.optim.SGD([{"params": weights, "freeze_values": True}], lr=1.0)
    optimizer = stochastic_rounding(base, reps, rounding=rule)
    draws = set()
    for _ in range(3):
        for weight, rep in reps.items():
            rep.codes["entries"].zero_()
            weight.data.zero_()
            weight.grad = torch.full((200,), -0.4)
        optimizer.step()
        for rep in reps.values():
            assert 40 < int(rep.group_codes().sum()) < 120  # 80 expected
            draws.add(tuple(rep.group_codes().flatten().tolist()))
    assert len(draws) == 6


def test_the_distributed_checkpoint_reads_a_fresh_optimizer_without_moving_it(
    make_setup, assert_same
):
    """It takes a hidden step with zero gradients and a learning rate of 0."""
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    setup = make_setup()
    before = copy.deepcopy(dict(setup.model.state_dict()))
    reps = copy.deepcopy({name: dict(rep.tensors()) for name, rep in setup.weights.items()})
    optimizer = make(setup)
    fresh = get_optimizer_state_dict(setup.model, optimizer)
    # what a checkpoint is loaded into must have a place for everything, the base's moments too
    assert {"exp_avg", "pv.latent", "pv.step"} <= set(fresh["state"]["0.weight"])
    assert_same(dict(setup.model.state_dict()), before)
    assert_same({name: dict(rep.tensors()) for name, rep in setup.weights.items()}, reps)
    assert optimizer.param_groups[0]["lr"] == 0.05

    run(setup, optimizer, 3)
    state = copy.deepcopy(get_optimizer_state_dict(setup.model, optimizer))
    assert torch.equal(
        state["state"]["0.weight"]["pv.codes.entries"], setup.weights["0.weight"].codes["entries"]
    )
    other = make_setup(seed=2)
    two = make(other)
    other.model.load_state_dict(setup.model.state_dict())
    set_optimizer_state_dict(other.model, two, state)
    run(setup, optimizer, 3)
    run(other, two, 3)
    assert_same(dict(setup.model.state_dict()), dict(other.model.state_dict()))


@pytest.mark.filterwarnings("ignore")  # of torch.distributed without a process group
def test_the_distributed_checkpoint_saves_and_loads_a_folder(make_setup, assert_same, tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    setup, other = make_setup(), make_setup(seed=2)
    one, two = make(setup), make(other)
    run(setup, one, 3)
    model, optimizer = get_state_dict(setup.model, one)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=tmp_path, no_dist=True)
    model, optimizer = get_state_dict(other.model, two)
    whole = {"model": model, "optimizer": optimizer}
    dcp.load(whole, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(
        other.model, two, model_state_dict=whole["model"], optim_state_dict=whole["optimizer"]
    )
    other.check_decoded()
    run(setup, one, 3)
    run(other, two, 3)
    assert_same(dict(setup.model.state_dict()), dict(other.model.state_dict()))
    assert_same(one.state_dict()["state"], two.state_dict()["state"])


@pytest.mark.filterwarnings("ignore")  # of accelerate itself
def test_accelerate_prepares_and_trains(make_setup, assert_same):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, PartialState

    plain, setup = make_setup(), make_setup()
    optimizer = make(plain)
    run(plain, optimizer, 4)
    try:
        accelerator = accelerate.Accelerator(cpu=True)
        model, prepared = accelerator.prepare(setup.model, make(setup))
        setup.check_decoded()
        for _ in range(4):
            prepared.zero_grad()
            accelerator.backward((model(setup.inputs) - setup.targets).square().mean())
            prepared.step()
            setup.check_decoded()
        assert_same(dict(plain.model.state_dict()), dict(setup.model.state_dict()))
        assert_same(optimizer.state_dict(), prepared.state_dict())
    finally:
        AcceleratorState._reset_state(True)
        PartialState._reset_state()


def test_codes_stay_exact_beyond_the_integers_of_half_precision():
    """bfloat16 represents integers to 256 only: a cast of 16-bit codes would corrupt them."""

    def make_model(seed: int) -> tuple[nn.Module, PVOptimizer]:
        torch.manual_seed(seed)
        model = nn.Linear(64, 32, bias=False).to(torch.bfloat16)
        parametrization = AdditiveCodebooks(num_codebooks=1, bits=10, in_group=2)
        weights = quantize_(model, parametrization, options=FitOptions(iterations=0))
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, PVOptimizer(base, weights, rounding=Nearest())

    one, two = make_model(0), make_model(1)
    assert int(next(two[1].named_representations())[2].group_codes().max()) > 256
    two[1].load_state_dict(through_file(one[1].state_dict()))
    left, right = (next(o.named_representations())[2] for _, o in (one, two))
    assert torch.equal(left.codes["entries"], right.codes["entries"])
    assert left.codes["entries"].dtype == right.codes["entries"].dtype == torch.int32
    assert torch.equal(one[0].weight, two[0].weight)
