"""Weights of one shape lie in common tensors and step together: nobody may notice."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pvopt import (
    E8P,
    AdditiveCodebooks,
    AllGroups,
    Forced,
    Gain,
    Greedy,
    Nearest,
    Parametrization,
    PVOptimizer,
    QuantizedWeights,
    Representation,
    SharedValues,
    Sparse,
    Stochastic,
    Ternary,
    Trellis,
    Uniform,
    UniformGrid,
    VectorCodebook,
    quantize_,
)
from pvopt.engine import runs, stacked_search, ties
from pvopt.parametrizations import contract

KINDS: dict[str, Parametrization] = {
    "values": SharedValues(num_values=4),
    "grid": UniformGrid(bits=2, group_size=8),
    "ternary": Ternary(group_size=8),
    "vectors": VectorCodebook(bits=3, group_size=4),
    "sums": AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2, out_group=2),
    "lattice": E8P(bits=2),
    "trellis": Trellis(bits=2, state_bits=4, code="table", out_group=2, in_group=4),
    "sparse": Sparse(density=0.5),
}
RULES: dict[str, dict[str, Any]] = {
    "greedy": {"subspace": Greedy(0.3), "latent_decay": 0.0, "trust_ratio": 0.3},
    "decay": {"subspace": AllGroups(), "latent_decay": 0.5},
    "forced": {"subspace": Uniform(0.3), "rounding": Forced()},
    "stochastic": {"subspace": AllGroups(), "rounding": Stochastic(), "trust_ratio": 0.3},
    "gain": {"subspace": Gain(0.3), "latent_decay": 0.0},
}
SHAPE = (4, 16)


@dataclass
class Layers:
    """Four layers of one shape and one of another."""

    model: nn.ModuleList
    weights: QuantizedWeights

    def gradients(self, seed: int, missing: tuple[str, ...] = ()) -> None:
        source = torch.Generator().manual_seed(seed)
        for name, p in self.model.named_parameters():
            gradient = torch.randn(p.shape, generator=source)
            p.grad = None if name in missing else gradient.to(p.dtype)

    def optimizer(self, **options: Any) -> PVOptimizer:
        return PVOptimizer(
            torch.optim.Adam(self.model.parameters(), lr=0.05), self.weights, **options
        )

    def run(self, optimizer: PVOptimizer, steps: int, first: int = 0) -> None:
        for step in range(first, first + steps):
            self.gradients(step)
            optimizer.step()
            self.check()

    def check(self) -> None:
        for name, rep in self.weights.items():
            parameter = self.weights.parameter(name)
            assert torch.equal(parameter, rep.decode().to(parameter.dtype)), name
            rep.check_codes()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return copy.deepcopy({name: dict(rep.tensors()) for name, rep in self.weights.items()})


def make(kind: str = "sums", only: int | None = None, dtype: torch.dtype = torch.float32) -> Layers:
    """Make the layers, or one of them with the weight and the name that it has among all."""
    source = torch.Generator().manual_seed(0)
    model = nn.ModuleList(
        nn.Linear(columns, rows, bias=False)
        for rows, columns in (SHAPE, SHAPE, SHAPE, SHAPE, (8, 16))
    )
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=source) / 2)
    weights = quantize_(model.to(dtype), KINDS[kind])
    if only is not None:
        weights = QuantizedWeights(model, {f"{only}.weight": weights[f"{only}.weight"]})
    return Layers(model, weights)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("rules", list(RULES))
def test_a_weight_steps_in_a_stack_as_it_does_alone(assert_same, kind, rules):
    """Codes, values, moments, latents, draws: bit for bit."""
    together = make(kind)
    optimizer = together.optimizer(**RULES[rules])
    together.run(optimizer, 3)
    changed = optimizer.report.changed
    for number in (0, 2, 3):
        alone = make(kind, only=number)
        other = alone.optimizer(**RULES[rules])
        alone.run(other, 3)
        name = f"{number}.weight"
        p, q = together.weights.parameter(name), alone.weights.parameter(name)
        assert torch.equal(p, q)
        assert_same(dict(optimizer.state[p]), dict(other.state[q]))
        assert changed[name] == other.report.changed[name]


@pytest.mark.parametrize("rules", list(RULES))
def test_pieces_of_a_stack_make_no_difference(assert_same, monkeypatch, rules):
    """How many weights are compared, ranked and searched together is a matter of memory."""
    whole, pieces = make(), make()
    one, two = (layers.optimizer(**RULES[rules]) for layers in (whole, pieces))
    whole.run(one, 3)
    size = SHAPE[0] * SHAPE[1]
    monkeypatch.setattr(stacked_search, "_COMPARED", 2 * size)
    monkeypatch.setattr(stacked_search, "_RANKED", size)
    monkeypatch.setattr(runs, "_SEARCHED", 3 * size)
    monkeypatch.setattr(ties, "_AT_ONCE", 3)
    pieces.run(two, 3)
    assert_same(one.state_dict(), two.state_dict())
    assert one.report.changed == two.report.changed


class Resorted(Greedy):
    """Selects as Greedy does, from all magnitudes."""

    def select(self, magnitudes: Any, *args: Any, **options: Any) -> Tensor:
        assert isinstance(magnitudes, Tensor)
        return super().select(magnitudes, *args, **options)


@pytest.mark.parametrize("kind", ["sums", "grid", "sparse"])
@pytest.mark.parametrize("rounding", [Nearest(), Forced()])
def test_the_largest_changes_are_those_of_all(assert_same, monkeypatch, kind, rounding):
    monkeypatch.setattr(contract, "_COMPARED", 2 * SHAPE[0] * SHAPE[1])
    one, two = make(kind), make(kind)
    options = {"rounding": rounding, "trust_ratio": 0.5, "latent_decay": 0.5}
    largest = one.optimizer(subspace=Greedy(0.3), **options)
    of_all = two.optimizer(subspace=Resorted(0.3), **options)
    assert Greedy.reads_largest
    assert not Resorted.reads_largest
    one.run(largest, 3)
    two.run(of_all, 3)
    assert_same(largest.state_dict(), of_all.state_dict())


def test_weights_of_one_shape_and_scheme_share_tensors_others_do_not():
    layers = make()
    optimizer = layers.optimizer()
    del optimizer
    pointers = [
        rep.codes["entries"].untyped_storage().data_ptr() for rep in layers.weights.values()
    ]
    assert len(set(pointers)) == 2
    assert len(set(pointers[:4])) == 1


@pytest.mark.parametrize("rules", list(RULES))
def test_an_optimizer_may_be_made_anew_over_the_same_weights(assert_same, rules):
    """With the state dict of the old one it goes on as the old one would."""
    layers, straight = make(), make()
    one, reference = layers.optimizer(**RULES[rules]), straight.optimizer(**RULES[rules])
    layers.run(one, 3)
    state = copy.deepcopy(one.state_dict())
    two = layers.optimizer(**RULES[rules])
    layers.check()
    two.load_state_dict(state)
    layers.run(two, 3, first=3)
    straight.run(reference, 6)
    assert_same(layers.tensors(), straight.tensors())
    assert_same(two.state_dict(), reference.state_dict())


@pytest.mark.parametrize("kind", list(KINDS))
def test_two_optimizers_over_the_same_representations_take_turns(kind):
    layers = make(kind)
    options = {"subspace": AllGroups(), "latent_decay": 0.0}
    one, two = layers.optimizer(**options), layers.optimizer(**options)
    for turn in range(6):
        optimizer, other = (one, two) if turn % 2 == 0 else (two, one)
        before = layers.tensors()
        layers.run(optimizer, 1, first=turn)
        after = layers.tensors()
        moved = [
            n for n in before if any(not torch.equal(before[n][k], after[n][k]) for k in after[n])
        ]
        assert moved == list(layers.weights)
        for saved in (optimizer.state_dict(), other.state_dict()):  # both show what is there now
            for number, rep in enumerate(layers.weights.values()):
                for key, tensor in rep.tensors():
                    assert saved["state"][number][f"pv.{key}"] is tensor
    assert {entry["pv.step"] for entry in one.state_dict()["state"].values()} == {3}


@pytest.mark.parametrize("kind", ["grid", "sums"])
def test_tensors_that_are_replaced_between_steps_are_taken_up(assert_same, kind):
    layers, twin = make(kind), make(kind)
    options = {"subspace": Greedy(0.4), "latent_decay": 0.0, "trust_ratio": 0.5}
    one, two = layers.optimizer(**options), twin.optimizer(**options)
    layers.run(one, 2)
    twin.run(two, 2)
    for replaced in (["1.weight"], list(layers.weights)):
        for name in replaced:
            rep = layers.weights[name]
            rep.codes = {key: codes.clone() for key, codes in rep.codes.items()}
            rep.values["scales"] = rep.values["scales"] * 2
            other = twin.weights[name]
            other.values["scales"].mul_(2)
            assert_same(one.state_dict(), two.state_dict())
        for each in (layers, twin):
            each.weights.write_()
        layers.run(one, 2, first=2)
        twin.run(two, 2, first=2)
        assert_same(layers.tensors(), twin.tensors())
        assert_same(one.state_dict(), two.state_dict())


@pytest.mark.parametrize("rules", list(RULES))
def test_a_stack_of_which_some_weights_have_gradients(assert_same, rules):
    """Late first gradients and gaps: a weight moves with its own gradients only."""
    layers = make()
    optimizer = layers.optimizer(**RULES[rules])
    plan = [("0.weight", "2.weight"), ("0.weight",), (), ("1.weight", "3.weight"), ("2.weight",)]
    for step, missing in enumerate(plan):
        before = layers.tensors()
        layers.gradients(step, missing)
        optimizer.step()
        layers.check()
        for name in missing:
            assert_same(dict(layers.weights[name].tensors()), before[name])
        assert set(optimizer.report.changed) == set(layers.weights) - set(missing)
    state = optimizer.state_dict()["state"]
    assert [state[number]["pv.step"] for number in range(5)] == [3, 4, 3, 4, 5]
    for number in (0, 2):
        alone, name = make(only=number), f"{number}.weight"
        other = alone.optimizer(**RULES[rules])
        for step, missing in enumerate(plan):
            alone.gradients(step, missing)
            other.step()
        assert_same(dict(alone.weights[name].tensors()), dict(layers.weights[name].tensors()))


GROUPS: list[dict[str, Any]] = [
    {"fraction": 0.5, "values_lr_ratio": 0.5},
    {"latent_decay": 0.5, "trust_ratio": 0.5},
    {"freeze_codes": True, "lr": 0.2},
    {"freeze_values": True, "seed": 4},
    {"lr": 0.0},
]


def test_groups_of_different_settings_inside_one_stack(assert_same):
    """Each weight as in an optimizer that has its settings alone."""
    layers = make()
    ps = layers.weights.parameters()
    groups = [{"params": [p], **own} for p, own in zip(ps, GROUPS, strict=True)]
    options = {"subspace": Greedy(0.2), "rounding": Stochastic(), "latent_decay": 0.0}
    optimizer = PVOptimizer(torch.optim.Adam(groups, lr=0.1), layers.weights, **options)
    start = layers.tensors()
    layers.run(optimizer, 6)
    for number, own in enumerate(GROUPS):
        alone, name = make(only=number), f"{number}.weight"
        group = {"params": alone.weights.parameters(), **own}
        other = PVOptimizer(torch.optim.Adam([group], lr=0.1), alone.weights, **options)
        alone.run(other, 6)
        p, q = ps[number], alone.weights.parameter(name)
        assert torch.equal(p, q)
        assert_same(dict(optimizer.state[p]), dict(other.state[q]))
        now = layers.tensors()[name]
        same_codes = torch.equal(now["codes.entries"], start[name]["codes.entries"])
        same_values = torch.equal(now["values.codebooks"], start[name]["values.codebooks"])
        assert same_codes == (number in (2, 4))
        assert same_values == (number in (3, 4))


def test_halves_that_are_frozen_and_thawed_on_the_way():
    layers = make()
    ps = layers.weights.parameters()
    groups = [{"params": ps[:2]}, {"params": ps[2:]}]
    base = torch.optim.Adam(groups, lr=0.3)
    optimizer = PVOptimizer(base, layers.weights, subspace=AllGroups(), latent_decay=0.0)
    for step, (codes, values) in enumerate(
        [(False, False), (True, False), (False, True), (True, True)]
    ):
        optimizer.param_groups[0].update(freeze_codes=codes, freeze_values=values)
        before = layers.tensors()
        layers.run(optimizer, 3, first=3 * step)
        after = layers.tensors()
        for number, name in enumerate(layers.weights):
            frozen = (codes, values) if number < 2 else (False, False)
            for key, still in zip(("codes.entries", "values.scales"), frozen, strict=True):
                assert torch.equal(before[name][key], after[name][key]) == still, (name, key)


def test_latents_are_turned_off_and_on_inside_one_stack(assert_same):
    layers = make()
    ps = layers.weights.parameters()
    groups = [{"params": [ps[1], ps[3]]}, {"params": [ps[0], ps[2], ps[4]]}]
    base = torch.optim.Adam(groups, lr=0.05)
    optimizer = PVOptimizer(base, layers.weights, subspace=AllGroups(), latent_decay=0.0)
    assert all("pv.latent" in s for s in optimizer.state_dict()["state"].values())
    for step, decay in enumerate((0.0, 1.0, 1.0, 0.25, 0.0)):
        optimizer.param_groups[0]["latent_decay"] = decay
        layers.run(optimizer, 1, first=step)
        for number, p in enumerate(ps):
            kept = decay < 1 or number in (0, 2, 4)
            assert ("pv.latent" in optimizer.state[p]) == kept
    reference = make()
    other = reference.optimizer(subspace=AllGroups(), latent_decay=0.0)
    reference.run(other, 5)
    for number in (0, 2, 4):
        assert torch.equal(ps[number], reference.weights.parameters()[number])


@pytest.mark.parametrize(
    "dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_weights_of_several_precisions_in_one_stack(assert_same, dtypes, decay):
    layers = make()
    first, second = dtypes
    for number, layer in enumerate(layers.model):
        layer.to(first if number < 2 else second)
    options = {"subspace": AllGroups(), "latent_decay": decay}
    optimizer = layers.optimizer(**options)
    layers.run(optimizer, 3)
    for number in (0, 3):
        alone, name = make(only=number), f"{number}.weight"
        alone.model[number].to(first if number < 2 else second)
        other = alone.optimizer(**options)
        alone.run(other, 3)
        p, q = layers.weights.parameter(name), alone.weights.parameter(name)
        assert_same(p.detach(), q.detach())
        assert_same(dict(optimizer.state[p]), dict(other.state[q]))


@pytest.mark.parametrize("rules", list(RULES))
def test_a_state_is_loaded_into_stacked_weights(assert_same, rules):
    one, two = make(), make()
    source, target = one.optimizer(**RULES[rules]), two.optimizer(**RULES[rules])
    one.run(source, 3)
    two.run(target, 2, first=50)
    held = {name: dict(rep.tensors()) for name, rep in two.weights.items()}
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    two.check()
    for name, rep in two.weights.items():
        assert all(tensor is held[name][key] for key, tensor in rep.tensors())
    one.run(source, 3, first=3)
    two.run(target, 3, first=3)
    assert_same(one.tensors(), two.tensors())
    assert_same(source.state_dict(), target.state_dict())


CLONES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
    "torch": lambda pair: through_file(pair, weights_only=False),
}


def through_file(thing: Any, *, weights_only: bool) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


@pytest.mark.parametrize("kind", ["grid", "sums", "lattice"])
@pytest.mark.parametrize("clone", list(CLONES))
@pytest.mark.parametrize("by_name", [True, False])
def test_copies_of_optimizer_and_model_are_stacked_by_themselves(assert_same, kind, clone, by_name):
    layers = make(kind)
    weights: Any = layers.weights
    if not by_name:
        weights = {layers.weights.parameter(name): rep for name, rep in layers.weights.items()}
    base = torch.optim.Adam(layers.model.parameters(), lr=0.05)
    optimizer = PVOptimizer(base, weights, subspace=AllGroups(), latent_decay=0.5)
    layers.run(optimizer, 2)
    before = layers.tensors()
    other, twin = CLONES[clone]((layers, optimizer))
    other.run(twin, 2, first=2)
    assert_same(layers.tensors(), before)  # the original did not move
    layers.run(optimizer, 2, first=2)
    assert_same(layers.tensors(), other.tensors())
    assert_same(optimizer.state_dict(), twin.state_dict())
    assert twin.report.changed == optimizer.report.changed


def test_the_copy_of_one_weight_does_not_bring_along_its_stack(assert_same):
    layers = make()
    layers.optimizer()
    rep = layers.weights["1.weight"]
    for copied in (copy.deepcopy(rep), pickle.loads(pickle.dumps(rep)), rep.clone()):
        assert_same(dict(copied.tensors()), dict(rep.tensors()))
        for _, tensor in copied.tensors():
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_saved_state_holds_each_tensor_once_and_nothing_else(kind):
    layers = make(kind)
    optimizer = layers.optimizer(latent_decay=0.0)
    layers.run(optimizer, 1)
    state = optimizer.state_dict()
    tensors = [
        t for entry in state["state"].values() for t in entry.values() if isinstance(t, Tensor)
    ]
    assert len({(t.data_ptr(), t.numel()) for t in tensors}) == len(tensors)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    assert sum(storages.values()) == sum(t.nbytes for t in tensors)
    file = io.BytesIO()
    torch.save(state, file)
    records = len(storages) + sum(len(entry) for entry in state["state"].values())
    assert file.tell() < sum(t.nbytes for t in tensors) + 1024 * records


def test_an_optimizer_starts_with_all_that_its_state_will_hold():
    layers = make()
    optimizer = layers.optimizer(latent_decay=0.0)
    fresh = {
        n: {k for k in entry if k.startswith("pv.")}
        for n, entry in optimizer.state_dict()["state"].items()
    }
    layers.run(optimizer, 2)
    later = {
        n: {k for k in entry if k.startswith("pv.")}
        for n, entry in optimizer.state_dict()["state"].items()
    }
    assert fresh == later
    assert {"pv.latent", "pv.step", "pv.moments.exp_avg.scales"} <= fresh[0]


def test_parameters_that_are_replaced_are_not_kept_alive():
    layers = make()
    optimizer = layers.optimizer(subspace=AllGroups())
    layers.run(optimizer, 1)
    for layer in layers.model:
        layer.weight = nn.Parameter(layer.weight.detach().clone())
    optimizer.param_groups[0]["params"] = list(layers.model.parameters())
    layers.run(optimizer, 1)
    assert set(optimizer.state) == set(layers.model.parameters())


def test_one_representation_of_several_parameters_is_refused():
    weights = [nn.Parameter(torch.zeros(SHAPE)) for _ in range(2)]
    rep = KINDS["grid"].fit(torch.randn(SHAPE))
    with pytest.raises(ValueError, match="representations must be distinct"):
        PVOptimizer(torch.optim.SGD(weights, lr=0.1), dict.fromkeys(weights, rep))


def test_a_refused_construction_leaves_the_base_as_it_was():
    layers = make()
    base = torch.optim.SGD([{"params": list(layers.model.parameters()), "fraction": 2.0}], lr=0.1)
    base.register_step_post_hook(lambda *_: None)
    keys = set(base.param_groups[0])
    with pytest.raises(ValueError, match="fraction"):
        PVOptimizer(base, layers.weights)
    assert set(base.param_groups[0]) == keys
    assert len(base._optimizer_step_post_hooks) == 1


@pytest.mark.parametrize("entry", ["pv.latent", "pv.moments.exp_avg.scales"])
def test_a_state_of_another_shape_is_refused_and_changes_nothing(assert_same, entry):
    one, two = make(), make()
    source, target = one.optimizer(latent_decay=0.0), two.optimizer(latent_decay=0.0)
    one.run(source, 1)
    saved = copy.deepcopy(source.state_dict())
    saved["state"][2][entry] = saved["state"][2][entry][:1]
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match=f"{entry.removeprefix('pv.')} of shape .*'2.weight'"):
        target.load_state_dict(saved)
    assert_same(target.state_dict(), before)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("layout", ["transposed", "expanded rows"])
def test_weights_and_gradients_of_any_layout(kind, layout):
    """Their entries decide, not how they lie in memory."""
    plain, other = make(kind), make(kind)
    for layer in other.model:
        weight = layer.weight.detach()
        if layout == "transposed":
            strided = weight.T.contiguous().T
        else:
            strided = torch.zeros(weight.shape[0], 2 * weight.shape[1])[:, ::2].copy_(weight)
        layer.weight = nn.Parameter(strided)
        assert not layer.weight.is_contiguous()
    options = {"subspace": Greedy(0.4), "latent_decay": 1.0, "rounding": Nearest()}
    one, two = plain.optimizer(**options), other.optimizer(**options)
    for step in range(2):
        for layers, optimizer in ((plain, one), (other, two)):
            layers.gradients(step)
            for p in layers.model.parameters():
                p.grad = p.grad if layers is plain else p.grad.T.contiguous().T
            optimizer.step()
            layers.check()
    for p, q in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_convolutions_in_channels_last():
    source = torch.Generator().manual_seed(0)
    model = nn.ModuleList(nn.Conv2d(4, 4, 2, bias=False) for _ in range(2))
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=source))
    model.to(memory_format=torch.channels_last)
    for kind in ("grid", "sums", "vectors"):
        weights = quantize_(model, {"*.weight": KINDS[kind]})
        base = torch.optim.Adam(model.parameters(), lr=0.1)
        optimizer = PVOptimizer(base, weights, subspace=AllGroups(), latent_decay=0.5)
        for _ in range(2):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=source).to(
                    memory_format=torch.channels_last
                )
            optimizer.step()
            for name, rep in weights.items():
                assert torch.equal(weights.parameter(name), rep.decode())


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_at_its_target_asks_for_nothing(kind, dtype):
    """Decoding for the norms and decoding into the weight give the same bits."""
    layers = make(kind, dtype=dtype)
    optimizer = layers.optimizer(subspace=AllGroups(), rounding=Forced())
    layers.run(optimizer, 1)
    for stack in optimizer._stacks:
        targets = [b.rep.decode() for b in stack.bindings]
        changes, _ = stack.rep.parametrization.change_norms(stack.rep, targets)
        assert not changes.any()


def test_a_stack_of_representations_is_what_its_members_are(assert_same):
    source = torch.Generator().manual_seed(0)
    reps = [KINDS["sums"].fit(torch.randn(SHAPE, generator=source)) for _ in range(3)]
    own = [rep.clone() for rep in reps]
    stack = Representation.stack(reps)
    for rep, before, member in zip(reps, own, stack.members(), strict=True):
        assert_same(dict(rep.tensors()), dict(before.tensors()))
        assert_same(dict(member.tensors()), dict(before.tensors()))
    stack.values["scales"].zero_()
    assert not any(rep.decode().any() for rep in reps)
