"""PVOptimizer(metric=...): what the metrics are, what they refuse, and that they pay."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pvopt import (
    AdditiveCodebooks,
    AllGroups,
    Diagonal,
    Gain,
    Greedy,
    InputMetric,
    Metric,
    MetricSource,
    PVOptimizer,
    Query,
    Rotation,
    Row,
    Scheme,
    SearchOptions,
    SecondMoment,
    UniformGrid,
    naive_pv,
    quantize_,
    subspace_pv_ste,
)
from pvopt.metrics.diagonal import GroupDiagonal

# Without first moments a step is a multiple of D^-1 g.
BASES: dict[str, Any] = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.9)),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.9), amsgrad=True),
    "Adam, eps": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.9), eps=0.5),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.0, 0.9), weight_decay=0.0),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1, betas=(0.0, 0.9)),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    "RMSprop, centered": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True, eps=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1, eps=0.3),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "Adafactor, eps": lambda p: torch.optim.Adafactor(p, lr=0.1, eps=(0.7, 1e-3)),
}


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 4), (7,)], ids=str)
@pytest.mark.parametrize("name", BASES)
def test_the_second_moment_is_what_the_step_divides_by(name: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    base = BASES[name]([parameter])
    for _ in range(3):
        parameter.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        before = parameter.detach().clone()
        base.step()
        metric = SecondMoment().of("w", parameter, base.param_groups[0], base)
        divisor = metric.diagonal(shape)
        assert bool((divisor > 0).all())
        eta = (before - parameter.detach()) * divisor / parameter.grad  # one number
        torch.testing.assert_close(eta, eta.flatten()[0].expand_as(eta), rtol=1e-9, atol=0)
        assert float(eta.flatten()[0]) > 0


def test_the_state_that_is_read_is_not_changed() -> None:
    for make in BASES.values():
        parameter = nn.Parameter(torch.ones(3, 4))
        base = make([parameter])
        parameter.grad = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
        base.step()
        state = copy.deepcopy(base.state[parameter])
        SecondMoment().of("w", parameter, base.param_groups[0], base)
        for key, value in base.state[parameter].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(state[key]))


class Third(torch.optim.Optimizer):
    """Somebody's optimizer, with the state entries that it is told to keep."""

    def __init__(self, parameters: Any, keys: tuple[str, ...]) -> None:
        super().__init__(parameters, {"lr": 0.1, "betas": (0.0, 0.9), "eps": 1e-8})
        self.keys = keys

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            state["step"] = state.get("step", 0) + 1
            for key in self.keys:
                old = state.get(key, torch.zeros_like(p))
                state[key] = 0.9 * old + 0.1 * p.grad.square()


def test_bases_without_second_moments_are_refused(make_setup) -> None:
    setup = make_setup()
    for kind in (torch.optim.SGD, torch.optim.RAdam, torch.optim.Rprop):
        base = kind(setup.model.parameters(), lr=0.1)
        called: list[Any] = []
        base.register_step_post_hook(lambda *a, called=called: called.append(a))
        with pytest.raises(TypeError, match=f"keeps squared gradients .*got {kind.__name__}"):
            PVOptimizer(base, setup.weights, metric=SecondMoment())
        setup.backward()
        base.step()
        assert called  # the base was left as it was
    setup = make_setup()
    other = Third(setup.model.parameters(), ())
    optimizer = PVOptimizer(other, setup.weights, metric=SecondMoment())
    setup.backward()
    with pytest.raises(TypeError, match="got Third"):
        optimizer.step()


def test_a_diagonal_is_refused_where_groups_are_rotated(make_setup) -> None:
    setup = make_setup(Scheme(UniformGrid(bits=2), Rotation()))
    base = torch.optim.Adam(setup.model.parameters())
    with pytest.raises(TypeError, match="a rotated space takes no diagonal metric"):
        PVOptimizer(base, setup.weights, metric=SecondMoment())
    PVOptimizer(
        base,
        setup.weights,
        metric=InputMetric({n: torch.eye(8) for n in ["0.weight"]} | {"2.weight": torch.eye(6)}),
    )


def test_other_optimizers_with_the_state_of_adam_work(make_setup) -> None:
    setup = make_setup()
    other = Third(setup.model.parameters(), ("exp_avg_sq",))
    optimizer = PVOptimizer(other, setup.weights, subspace=AllGroups(), metric=SecondMoment())
    setup.backward()
    optimizer.step()
    weight = setup.weights.parameter("0.weight")
    metric = SecondMoment().of("0.weight", weight, optimizer.param_groups[0], other)
    torch.testing.assert_close(metric.diagonal((6, 8)), weight.grad.abs() + 1e-8)


def test_invalid_metrics_are_named(make_setup) -> None:
    setup = make_setup()
    base = torch.optim.Adam(setup.model.parameters())
    with pytest.raises(TypeError, match="metric must be a MetricSource, got Tensor"):
        PVOptimizer(base, setup.weights, metric=torch.eye(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lacks \['2.weight'\]"):
        PVOptimizer(base, setup.weights, metric=InputMetric({"0.weight": torch.eye(8)}))
    sizes = {"0.weight": torch.eye(8), "2.weight": torch.eye(8)}
    with pytest.raises(ValueError, match=r"'2\.weight'.*\[6, 6\].*got \[8, 8\]"):
        PVOptimizer(base, setup.weights, metric=InputMetric(sizes))
    with pytest.raises(ValueError, match="hessian must be finite"):
        InputMetric({"0.weight": torch.full((8, 8), torch.nan)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_in_the_second_moment_takes_the_nearest_codes_in_it(make_setup, dtype) -> None:
    """Against a search by hand, with the optimizer's own latent weight and state."""
    setup = make_setup(AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2), dtype=dtype)
    base = torch.optim.Adam(setup.model.parameters(), lr=0.3)
    search = SearchOptions(beam_size=4)  # every combination
    options = {"subspace": AllGroups(), "latent_decay": 0.0, "metric": SecondMoment()}
    optimizer = PVOptimizer(base, setup.weights, **options, search=search)
    for _ in range(4):
        setup.backward()
        optimizer.step()
        setup.check_decoded()
        for name, rep in setup.weights.items():
            parameter = setup.weights.parameter(name)
            latent = optimizer.state[parameter]["pv.latent"]
            state = base.state[parameter]
            metric = (state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).sqrt() + 1e-8
            p, target, weights = rep.parametrization, rep.split(latent), rep.split(metric)
            query = Query(target=target, rep=rep, metric=GroupDiagonal(weights), options=search)
            best = p.candidates(query).errors[:, 0]
            present = (weights * (p.decode_groups(rep) - target).square()).sum(1)
            torch.testing.assert_close(present, best, rtol=1e-4, atol=1e-7)


def calibrated(seed: int) -> tuple[nn.Module, str, Tensor, Tensor]:
    """A tiny Llama, one of its layers, that layer's inputs and X'X."""
    from pvopt.llm import load_model  # the only test here that needs transformers

    language_model = load_model("tiny-llama")
    name = "model.layers.0.mlp.down_proj"
    layer = language_model.model.get_submodule(name)
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    tokens = torch.randint(0, 200, (4, 64), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        language_model.model(tokens)
    handle.remove()
    inputs = seen[0].flatten(0, 1).double()
    return language_model.model, name + ".weight", inputs, inputs.T @ inputs


@pytest.mark.parametrize(
    "parametrization", [UniformGrid(bits=2), AdditiveCodebooks(num_codebooks=2, bits=4, in_group=8)]
)
def test_on_a_real_layer_the_metric_of_its_inputs_beats_the_euclidean(parametrization) -> None:
    """Codes of a V step towards the dense weight: the outputs' error, and no step raises it."""
    model, name, inputs, hessian = calibrated(0)
    parameter = model.get_parameter(name)
    dense = parameter.detach().clone()
    errors = {}
    for kind, metric in (("inputs", InputMetric({name: hessian})), ("euclidean", None)):
        with torch.no_grad():
            parameter.copy_(dense)
        weights = quantize_(model, {name: parametrization})
        # A learning rate of one and this gradient make the dense weight the target.
        base = torch.optim.SGD([parameter], lr=1.0)
        optimizer = naive_pv(base, weights, metric=metric)
        optimizer.param_groups[0]["freeze_values"] = True
        found = [Row(hessian).relative_error(dense, parameter.detach())]
        for _ in range(3):
            parameter.grad = parameter.detach() - dense
            optimizer.step()
            found.append(Row(hessian).relative_error(dense, parameter.detach()))
            quotient = (inputs @ (parameter.detach() - dense).double().T).norm()
            assert found[-1] == pytest.approx(
                float(quotient / (inputs @ dense.double().T).norm()), rel=1e-4
            )
        if kind == "inputs":
            assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(found))
        errors[kind] = found[-1]
    assert errors["inputs"] < 0.9 * errors["euclidean"]


def test_gain_takes_a_fraction_per_group_and_resumes(make_setup, assert_same) -> None:
    def make() -> tuple[Any, PVOptimizer]:
        setup = make_setup()
        one, two = setup.weights.parameters()
        groups = [
            {"params": [one], "fraction": 0.5},
            {"params": [two]},
            {"params": setup.weights.other_parameters()},
        ]
        base = torch.optim.Adam(groups, lr=0.2)
        options = {"subspace": Gain(0.1), "trust_ratio": 0.5, "metric": SecondMoment()}
        return setup, subspace_pv_ste(base, setup.weights, **options)

    setup, optimizer = make()
    assert [g["fraction"] for g in optimizer.param_groups] == [0.5, 0.1, 0.1]
    moved = {"0.weight": 0, "2.weight": 0}
    for _ in range(4):
        setup.backward()
        optimizer.step()
        for name, count in optimizer.report.changed.items():
            moved[name] = max(moved[name], count)
    first, second = (rep.layout.num_groups for rep in setup.weights.values())
    assert 0.1 * first < moved["0.weight"] <= 0.5 * first
    assert 0 < moved["2.weight"] <= -(-second // 10)
    saved = copy.deepcopy(optimizer.state_dict())
    other_setup, other = make()
    other.load_state_dict(saved)
    other_setup.model.load_state_dict(setup.model.state_dict())
    for each, its in ((setup, optimizer), (other_setup, other)):
        each.backward()
        its.step()
    assert_same(other.state_dict(), optimizer.state_dict())


def test_the_metric_does_not_change_who_is_greedy(make_setup) -> None:
    """Greedy and the trust region stay Euclidean; a metric of ones changes nothing at all."""

    class Ones(MetricSource):
        def of(self, name: Any, parameter: Tensor, group: Any, base: Any) -> Metric:
            return Diagonal(torch.ones_like(parameter))

    states = []
    for metric in (None, Ones()):
        setup = make_setup()
        base = torch.optim.Adam(setup.model.parameters(), lr=0.2)
        optimizer = PVOptimizer(
            base, setup.weights, subspace=Greedy(0.2), trust_ratio=0.3, metric=metric
        )
        for _ in range(3):
            setup.backward()
            optimizer.step()
        states.append({n: r.group_codes().clone() for n, r in setup.weights.items()})
    for name, codes in states[0].items():
        assert torch.equal(codes, states[1][name])
