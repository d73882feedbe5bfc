"""What other tools of a training loop hold on to, and what loops do besides step()."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pvopt import (
    AllGroups,
    Greedy,
    PVOptimizer,
    QuantizedWeights,
    Representation,
    UniformGrid,
    WeightsChangedError,
    quantize_,
    ste,
    subspace_pv_ste,
)


def adam(setup: Any, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.Adam(setup.model.parameters(), lr=lr)


def run(setup: Any, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        setup.backward()
        optimizer.step()
        setup.check_decoded()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("latent_decay", [0.0, 1.0])
def test_hooks_on_gradient_accumulators_survive(make_setup, dtype, latent_decay):
    """DDP holds the accumulator itself; a change of the data's type would drop it."""
    setup = make_setup(dtype=dtype)
    optimizer = PVOptimizer(adam(setup), setup.weights, latent_decay=latent_decay)
    weight = setup.weights.parameter("0.weight")
    accumulator = weight.view_as(weight).grad_fn.next_functions[0][0]
    calls: list[str] = []
    accumulator.register_hook(lambda *args: calls.append("accumulator"))
    weight.register_post_accumulate_grad_hook(lambda p: calls.append("after"))
    weight.register_hook(lambda gradient: calls.append("gradient"))
    run(setup, optimizer, 3)
    assert sorted(calls) == ["accumulator"] * 3 + ["after"] * 3 + ["gradient"] * 3
    assert weight.view_as(weight).grad_fn.next_functions[0][0] is accumulator


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_in_ddp_trains_as_without(make_setup, assert_same, tmp_path, dtype):
    plain, setup = make_setup(dtype=dtype), make_setup(dtype=dtype)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(setup.model)
        base = torch.optim.Adam(wrapped.parameters(), lr=0.05)
        one, two = ste(adam(plain), plain.weights), ste(base, setup.weights)
        setup.weights.broadcast_()
        for _ in range(3):
            plain.backward()
            one.step()
            two.zero_grad()
            (wrapped(setup.inputs) - setup.targets).square().mean().backward()
            two.step()
        assert_same(one.state_dict(), two.state_dict())
    finally:
        dist.destroy_process_group()


def test_hooks_that_come_to_the_base_later_see_final_weights_and_can_be_removed(make_setup):
    setup = make_setup(dtype=torch.bfloat16)
    base = adam(setup)
    optimizer = ste(base, setup.weights)
    seen: list[Any] = []

    def hook(found: Any, args: Any, kwargs: Any) -> None:
        setup.check_decoded()
        assert base.param_groups[0]["params"] == list(setup.model.parameters())
        seen.append(found)

    before, after = base.register_step_pre_hook(hook), base.register_step_post_hook(hook)
    run(setup, optimizer, 1)
    assert seen == [optimizer, optimizer]
    before.remove()
    run(setup, optimizer, 1)
    assert seen == [optimizer] * 3
    after.remove()
    run(setup, optimizer, 1)
    assert seen == [optimizer] * 3
    other, twin = copy.deepcopy((setup, optimizer))
    twin.base.register_step_post_hook(lambda found, *args: seen.append("copy"))
    run(other, twin, 1)
    assert seen[3:] == ["copy"]


ORDERS = {"reversed": [3, 2, 1, 0], "weights exchanged": [2, 1, 0, 3]}


def alike(order: list[int], prefix: str = "", *, named: bool = True) -> tuple[Any, PVOptimizer]:
    """Two layers of one shape, given to the base in some order."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator))
    weights = quantize_(model, UniformGrid(bits=2))
    given = [(prefix + name, p) for name, p in model.named_parameters()]
    params: Any = [given[place] if named else given[place][1] for place in order]
    optimizer = ste(torch.optim.Adam(params, lr=0.1), weights)
    model(torch.ones(2, 6)).square().sum().backward()
    return model, optimizer


@pytest.mark.parametrize("order", list(ORDERS))
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_layers_of_one_shape_get_their_own_codes_by_name(assert_same, order, prefix):
    model, optimizer = alike([0, 1, 2, 3], prefix)
    optimizer.step()
    other, twin = alike(ORDERS[order])
    other.load_state_dict(model.state_dict())
    twin.load_state_dict(optimizer.state_dict())
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    assert twin.param_groups[0]["param_names"][0] == (
        "1.bias" if order == "reversed" else "1.weight"
    )
    pairs = list(zip(optimizer.named_representations(), twin.named_representations(), strict=True))
    for (_, p, _), (_, q, _) in pairs:
        assert_same(dict(optimizer.state[p]), dict(twin.state[q]))
    for each in (optimizer, twin):
        each.step()
    for (_, p, rep), (_, q, same) in pairs:
        assert_same(rep.codes, same.codes)
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("named", [(False, False), (True, False), (False, True)])
def test_without_names_another_order_is_refused(assert_same, named):
    model, optimizer = alike([0, 1, 2, 3], named=named[0])
    optimizer.step()
    other, twin = alike(ORDERS["weights exchanged"], named=named[1])
    before = copy.deepcopy((dict(other.state_dict()), twin.state_dict()))
    with pytest.raises(ValueError, match="in another order; give the base optimizers named_param"):
        twin.load_state_dict(optimizer.state_dict())
    assert_same((dict(other.state_dict()), twin.state_dict()), before)
    same, third = alike([0, 1, 2, 3], named=named[1])
    same.load_state_dict(model.state_dict())
    third.load_state_dict(optimizer.state_dict())
    assert_same(dict(same.state_dict()), dict(model.state_dict()))


def test_other_names_are_refused_and_named(assert_same):
    _, optimizer = alike([0, 1, 2, 3], "encoder.")
    other, twin = alike([0, 1, 2, 3])
    before = dict(copy.deepcopy(other.state_dict()))
    with pytest.raises(ValueError, match=r"'0.weight'.* are not among \['encoder.0.weight'"):
        twin.load_state_dict(optimizer.state_dict())
    assert_same(dict(other.state_dict()), before)


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("fresh", [True, False])
def test_the_distributed_checkpoint_loads_flattened_states(make_setup, assert_same, flatten, fresh):
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    setup, other = make_setup(), make_setup(seed=2)
    one, two = (
        subspace_pv_ste(adam(setup), setup.weights),
        subspace_pv_ste(adam(other), other.weights),
    )
    run(setup, one, 2)
    run(other, two, 0 if fresh else 1)
    two.zero_grad()
    saved = copy.deepcopy(get_optimizer_state_dict(setup.model, one, options=options))
    other.model.load_state_dict(setup.model.state_dict())
    set_optimizer_state_dict(other.model, two, saved, options=options)
    assert_same(two.state_dict()["state"], one.state_dict()["state"])
    run(setup, one, 2)
    run(other, two, 2)
    assert_same(dict(other.model.state_dict()), dict(setup.model.state_dict()))


def test_the_state_shows_the_names_of_the_state_dict_and_writes_through(make_setup):
    setup = make_setup()
    optimizer = ste(adam(setup), setup.weights)
    assert not optimizer.state
    run(setup, optimizer, 1)
    saved = optimizer.state_dict()["state"]
    parameters = list(setup.model.parameters())
    assert set(optimizer.state) == set(parameters)
    for number, p in enumerate(parameters):
        assert set(optimizer.state[p]) == set(saved[number])
        assert all(optimizer.state[p][key] is saved[number][key] for key in saved[number])
    weight, rep = setup.weights.parameter("0.weight"), setup.weights["0.weight"]
    optimizer.state[weight]["exp_avg"] = torch.ones(6, 8)
    assert bool((optimizer.base.state[weight]["exp_avg"] == 1).all())
    scales = rep.values["scales"]
    # As tools do that move a state to another device.
    optimizer.state[weight] = {
        key: value.clone() * 2 if key == "pv.values.scales" else value
        for key, value in optimizer.state[weight].items()
    }
    assert rep.values["scales"] is scales
    assert torch.equal(scales, optimizer.state[weight]["pv.values.scales"])
    assert "pv.step" not in optimizer.base.state[weight]
    with pytest.raises(WeightsChangedError, match=r"'0.weight'"):
        setup.weights.check()


def test_an_optimizer_for_each_weight_steps_in_the_backward_pass(make_setup, assert_same):
    setup, whole = make_setup(), make_setup()
    optimizers = {
        p: ste(torch.optim.SGD([p], lr=0.1), QuantizedWeights(setup.model, {name: rep}))
        for (name, rep), p in zip(setup.weights.items(), setup.weights.parameters(), strict=True)
    }

    def step(p: Any) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step)
    together = ste(torch.optim.SGD(whole.weights.parameters(), lr=0.1), whole.weights)
    for _ in range(3):
        setup.backward()
        setup.check_decoded()
        run(whole, together, 1)
    assert_same(setup.weights.snapshot(), whole.weights.snapshot())


@pytest.mark.parametrize("how", ["functional_call", "checkpoint", "checkpoint, reentrant"])
def test_other_ways_to_call_the_model(make_setup, assert_same, how):
    plain, setup = make_setup(), make_setup()
    one, two = (ste(adam(s), s.weights) for s in (plain, setup))
    for _ in range(3):
        run(plain, one, 1)
        two.zero_grad()
        if how == "functional_call":
            found = functional_call(setup.model, dict(setup.model.named_parameters()), setup.inputs)
        else:
            inputs = setup.inputs.requires_grad_()
            found = checkpoint(setup.model, inputs, use_reentrant="reentrant" in how)
        (found - setup.targets).square().mean().backward()
        two.step()
    assert_same(one.state_dict(), two.state_dict())


def test_muon_for_matrices_beside_adam_for_the_rest(make_setup, assert_same):
    """Two optimizers, each with some of the quantized weights of one model."""
    results = []
    for _ in range(2):
        setup = make_setup()
        first, second = setup.weights.parameters()
        others = [second, *setup.weights.other_parameters()]
        muon = subspace_pv_ste(torch.optim.Muon([first], lr=0.02), setup.weights)
        rest = subspace_pv_ste(torch.optim.Adam(others, lr=0.02), setup.weights)
        start = setup.loss().item()
        for step in range(12):
            setup.backward()
            muon.step()
            rest.step()
            setup.check_decoded()
            if step == 5:
                for optimizer in (muon, rest):
                    optimizer.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
        assert set(muon.report.changed) == {"0.weight"}
        assert set(rest.report.changed) == {"2.weight"}
        assert setup.loss().item() < start
        results.append((setup.weights.snapshot(), muon.state_dict(), rest.state_dict()))
    assert_same(*results)


def test_optimizers_of_equal_weights_leave_each_other_theirs(monkeypatch):
    """One for each weight, stepped in turn: none stacks weights that another one has."""
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(3)))
    weights = quantize_(model, UniformGrid(bits=2))
    sizes: list[int] = []
    stack = Representation.stack
    monkeypatch.setattr(
        Representation, "stack", lambda reps: sizes.append(len(reps)) or stack(reps)
    )
    optimizers = [ste(torch.optim.SGD([p], lr=0.01), weights) for p in weights.parameters()]
    assert sizes == [1, 1, 1]
    for _ in range(2):
        model.zero_grad()
        model(torch.ones(1, 8)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert sizes == [1, 1, 1]
    weights.check()


def test_sharpness_aware_steps_are_taken_around_it(make_setup):
    """Weights are perturbed, put back and stepped, as SAM does."""
    setup = make_setup()
    optimizer = PVOptimizer(adam(setup), setup.weights, subspace=Greedy(0.3), latent_decay=0.0)
    losses = []
    for _ in range(20):
        losses.append(setup.backward())
        with torch.no_grad():
            kept = {p: p.clone() for p in setup.model.parameters()}
            for p in kept:
                p.add_(p.grad, alpha=0.05 / float(p.grad.norm() + 1e-12))
        setup.backward()
        with torch.no_grad():
            for p, before in kept.items():
                p.copy_(before)
        optimizer.step()
        setup.check_decoded()
    assert losses[-1] < losses[0]


class Adapted(nn.Module):
    """A linear layer beside which a product of low rank is tuned."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Parameter(torch.randn(1, base_layer.in_features) / 4)
        self.up = nn.Parameter(torch.zeros(base_layer.out_features, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + x @ self.down.T @ self.up.T


def test_adapters_come_first_and_are_merged_into_codes():
    torch.manual_seed(0)
    model = nn.Sequential(Adapted(nn.Linear(8, 6)), nn.Tanh(), Adapted(nn.Linear(6, 4)))
    weights = quantize_(model, {"*.base_layer": UniformGrid(bits=3)})
    assert list(weights) == ["0.base_layer.weight", "2.base_layer.weight"]
    inputs, targets = torch.randn(16, 8), torch.randn(16, 4)
    optimizer = ste(torch.optim.Adam(model.parameters(), lr=0.02), weights)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        weights.check()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            assert isinstance(layer, Adapted)
            layer.base_layer.weight += layer.up @ layer.down
            layer.up.zero_()
    assert set(weights.refit_()) == set(weights)
    assert (model(inputs) - targets).square().mean().item() < losses[0]
    # Put into its place afterwards, an adapter hides the weight: the name says so.
    model[0] = nn.Sequential(model[0])
    with pytest.raises(WeightsChangedError, match=r"'0.base_layer.weight'"):
        weights.check()


@pytest.mark.parametrize("scheduled", ["optimizer", "base"])
def test_a_learning_rate_may_be_a_tensor(make_setup, assert_same, scheduled):
    plain, setup = make_setup(), make_setup()
    one = ste(adam(plain), plain.weights)
    base = torch.optim.Adam(setup.model.parameters(), lr=torch.tensor(0.05), foreach=False)
    two = ste(base, setup.weights)
    for each, shown in ((one, one), (two, two if scheduled == "optimizer" else base)):
        scheduler = torch.optim.lr_scheduler.ExponentialLR(shown, 0.5)
        for _ in range(3):
            run(plain if each is one else setup, each, 1)
            scheduler.step()
    for name, own in plain.weights.snapshot().items():
        for key, tensor in own.items():
            torch.testing.assert_close(setup.weights.snapshot()[name][key], tensor)


@pytest.mark.filterwarnings("ignore")  # of transformers itself
def test_the_trainer_resumes_and_its_best_checkpoint_holds_the_codes(
    make_setup, assert_same, tmp_path
):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, PartialState

    class Wrapped(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Any, labels: Any = None) -> dict[str, Any]:
            found = self.net(x)
            return {"loss": (found - labels).square().mean(), "logits": found}

    def train(steps: int, folder: str, resume: bool = False) -> tuple[Any, PVOptimizer, Any]:
        setup = make_setup()
        model = Wrapped(setup.model)
        weights = QuantizedWeights(model, {f"net.{n}": rep for n, rep in setup.weights.items()})
        optimizer = ste(torch.optim.AdamW(model.parameters(), lr=0.05), weights)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 4 else 40.0)
        data = [{"x": x, "labels": y} for x, y in zip(setup.inputs, setup.targets, strict=True)]
        options = transformers.TrainingArguments(
            str(tmp_path / folder),
            max_steps=steps,
            per_device_train_batch_size=8,
            save_strategy="steps",
            save_steps=4,
            eval_strategy="steps",
            eval_steps=4,
            load_best_model_at_end=True,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model, options, train_dataset=data, eval_dataset=data, optimizers=(optimizer, rate)
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer, optimizer, weights

    try:
        trainer, optimizer, weights = train(8, "whole")
        best = trainer.state.best_model_checkpoint
        assert best.endswith("checkpoint-4")
        with pytest.raises(WeightsChangedError, match=r"'net.0.weight'"):
            weights.check()
        shown = copy.deepcopy(dict(trainer.model.state_dict()))
        optimizer.load_state_dict(torch.load(f"{best}/optimizer.pt", weights_only=True))
        weights.check()
        assert_same(dict(trainer.model.state_dict()), shown)
        train(4, "parts")
        _, resumed, again = train(8, "parts", resume=True)
        resumed.load_state_dict(
            torch.load(tmp_path / "parts" / "checkpoint-8" / "optimizer.pt", weights_only=True)
        )
        optimizer.load_state_dict(
            torch.load(tmp_path / "whole" / "checkpoint-8" / "optimizer.pt", weights_only=True)
        )
        assert_same(again.snapshot(), weights.snapshot())
        assert_same(resumed.state_dict()["state"], optimizer.state_dict()["state"])
    finally:
        AcceleratorState._reset_state(True)
        PartialState._reset_state()


@pytest.mark.filterwarnings("ignore")  # of lightning itself
def test_lightning_saves_and_resumes(make_setup, assert_same, tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    def train(epochs: int, resume: str | None = None) -> Any:
        setup = make_setup()

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = setup.model

            def training_step(self, batch: Any, number: int) -> Any:
                return (self.net(batch[0]) - batch[1]).square().mean()

            def configure_optimizers(self) -> Any:
                return ste(adam(setup), setup.weights)

        module = Module()
        data = torch.utils.data.TensorDataset(setup.inputs, setup.targets)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = torch.utils.data.DataLoader(data, batch_size=8)
        trainer.fit(module, loader, ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        setup.check_decoded()
        return setup.weights.snapshot()

    whole = train(4)
    train(2)
    assert_same(train(4, str(tmp_path / "last.ckpt")), whole)


def test_groups_may_be_frozen_by_their_rate(make_setup, assert_same):
    """A learning rate of 0 moves nothing and looks at nothing, whatever the model holds."""
    setup = make_setup()
    base = torch.optim.Adam(setup.model.parameters(), lr=0.0)
    optimizer = PVOptimizer(base, setup.weights, subspace=AllGroups(), latent_decay=0.5)
    setup.weights.parameter("0.weight").data.mul_(2)
    before = copy.deepcopy(dict(setup.model.state_dict()))
    setup.backward()
    optimizer.step()
    assert_same(dict(setup.model.state_dict()), before)
    base.param_groups[0]["lr"] = 0.1
    with pytest.raises(WeightsChangedError, match=r"'0.weight'"):
        optimizer.step()
