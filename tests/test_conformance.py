"""One suite that every parametrization, rounding and subspace rule must pass in any combination.

To add a rule, add one line to its table.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pvopt.formats.native.registry import BUILT_IN
from torch import Tensor, nn

from pvopt import (
    E8P,
    AdditiveCodebooks,
    AllGroups,
    Binary,
    Forced,
    Gain,
    Greedy,
    Incoherent,
    InputMetric,
    Metric,
    Nearest,
    Parametrization,
    Proportional,
    PVOptimizer,
    QuantizedNonzeros,
    QuantizedScales,
    Representation,
    Rounding,
    SecondMoment,
    SharedValues,
    Sparse,
    SparseNM,
    Stochastic,
    Subspace,
    Ternary,
    Uniform,
    UniformGrid,
    VectorCodebook,
    v_step,
)
from pvopt.llm import QuantizedLinear

PARAMETRIZATIONS: list[Parametrization] = [
    SharedValues(num_values=5),
    UniformGrid(bits=2, group_size=4),
    UniformGrid(bits=3, symmetric=True),
    Binary(),
    Ternary(group_size=4),
    Sparse(density=0.5),
    Sparse(density=0.25, per="tensor"),
    SparseNM(nonzeros=2, group_size=4),
    QuantizedNonzeros(
        support=SparseNM(nonzeros=2, group_size=4), inner=UniformGrid(bits=2, group_size=4)
    ),
    QuantizedNonzeros(support=Sparse(density=0.5), inner=VectorCodebook(bits=3, group_size=2)),
    VectorCodebook(bits=3, group_size=2),
    VectorCodebook(bits=2, group_size=2, scale_group=4),
    AdditiveCodebooks(num_codebooks=2, bits=2, in_group=4),
    AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2, out_group=2, scale_group=4),
    E8P(bits=2),
    E8P(bits=3, scale_group=8),
    QuantizedScales(inner=VectorCodebook(bits=3, group_size=2, scale_group=4), bits=2),
    Incoherent(UniformGrid(bits=3, group_size=4)),
    Incoherent(E8P(bits=4, per_tensor=True), seed=1),
]
ROUNDINGS: list[Rounding] = [Nearest(), Forced(), Stochastic(), Stochastic("linear")]
SUBSPACES: list[Subspace] = [AllGroups(), Greedy(0.2), Uniform(0.2), Proportional(0.2), Gain(0.2)]
METRICS: list[str | None] = [None, "second moment", "inputs"]
LATENT_DECAYS = [0.0, 0.3, 1.0]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
TRUST_RATIOS = [None, 0.3]

SHAPE, STEPS = (6, 8), 4


@dataclass(frozen=True)
class Composition:
    """One way to put the parts together."""

    parametrization: Parametrization
    rounding: Rounding
    subspace: Subspace
    latent_decay: float
    dtype: torch.dtype
    trust_ratio: float | None
    metric: str | None

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        parts = (self.parametrization, self.rounding, self.subspace, self.latent_decay, dtype)
        last = (self.trust_ratio, self.metric)
        return "-".join(str(part) for part in (*parts, *last))


def compositions() -> list[Composition]:
    """All parametrizations x roundings x subspaces, each with two of the other settings.

    The other settings go round so that every pair of any two settings occurs.
    """
    others = list(itertools.product(LATENT_DECAYS, DTYPES, TRUST_RATIOS, METRICS))
    main = itertools.product(PARAMETRIZATIONS, ROUNDINGS, SUBSPACES)
    # 5 and 54 have no common factor: consecutive picks walk through all combinations.
    turn = (others[5 * i % len(others)] for i in itertools.count())
    found = []
    for parts in main:
        if fits(parts[0], parts[1]):
            usable = (last for last in turn if takes(parts[0], last[-1]))
            found += [Composition(*parts, *last) for last in itertools.islice(usable, 2)]
    return found


def fits(parametrization: Parametrization, rounding: Rounding) -> bool:
    try:
        rounding.check(parametrization)
    except TypeError:
        return False
    return True


def takes(parametrization: Parametrization, metric: str | None) -> bool:
    """Whether groups live in a space where the metric is what a V step can search in."""
    if metric != "second moment":
        return True
    try:
        parametrization.split_diagonal(torch.ones(SHAPE))
    except TypeError:
        return False
    return True


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Run:
    """A least-squares problem ||W X - Y||^2 / n and an optimizer for it."""

    def __init__(self, how: Composition, seed: int = 0, start: int = 0) -> None:
        self.how = how
        self.parameter = nn.Parameter(gaussian(start, *SHAPE).to(how.dtype))
        self.rep = how.parametrization.fit(self.parameter)
        with torch.no_grad():
            self.parameter.copy_(self.rep.decode())
        self.inputs = gaussian(1, SHAPE[1], 16).to(how.dtype)
        self.outputs = gaussian(2, SHAPE[0], 16).to(how.dtype)
        self.optimizer = PVOptimizer(
            torch.optim.Adam([self.parameter], lr=0.1),
            {self.parameter: self.rep},
            rounding=how.rounding,
            subspace=how.subspace,
            latent_decay=how.latent_decay,
            trust_ratio=how.trust_ratio,
            metric=self.metric(),
            seed=seed,
        )

    def metric(self) -> Metric | None:
        if self.how.metric is None:
            return None
        if self.how.metric == "second moment":
            return SecondMoment()
        return InputMetric({"parameter 0": self.inputs @ self.inputs.T})

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = (self.parameter @ self.inputs - self.outputs).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def state(self) -> dict[str, Any]:
        return {"weight": self.parameter.detach(), "optimizer": self.optimizer.state_dict()}


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert set(left) == set(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


def selected(how: Composition, num_groups: int) -> int:
    count = getattr(how.subspace, "count", None)
    return num_groups if count is None else count(num_groups)


def decoded_before_v_steps(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Record the groups that each V step starts from."""
    found: list[Tensor] = []

    def recorded(rep: Representation, target: Tensor, decoded: Tensor, **rules: Any) -> int:
        found.append(decoded.clone())
        return v_step(rep, target, decoded, **rules)

    monkeypatch.setattr("pvopt.optimizer.v_step", recorded)
    return found


@pytest.mark.parametrize("how", compositions(), ids=str)
def test_a_composition(how: Composition, monkeypatch: pytest.MonkeyPatch) -> None:
    run, twin = Run(how), Run(how)
    rep: Representation = run.rep
    before = decoded_before_v_steps(monkeypatch)
    for step in range(STEPS):
        codes = rep.codes.clone()
        run.step()
        # the weight is always decode(codes, values), cast
        assert torch.equal(run.parameter, rep.decode().to(how.dtype))
        assert bool(run.parameter.isfinite().all())
        how.parametrization.check_codes(rep.codes, rep.shape)
        # no more groups move than were selected, and the report tells how many
        moved = int((rep.codes != codes).any(-1).sum())
        assert moved == run.optimizer.report.changed_groups
        assert moved <= selected(how, rep.layout.num_groups)
        # the V step, between the weight after the P step and the new one, is in the trust region
        between = how.parametrization.merge(before[-1], rep.shape)
        change = float((rep.decode() - between).norm())
        if how.trust_ratio is not None and moved > 1:
            assert change <= how.trust_ratio * float(between.norm()) * (1 + 1e-5)
        assert ("latent" in run.optimizer.state[run.parameter]) == (how.latent_decay < 1)
        # the same seed repeats everything, a state dict continues it from another start
        if step == 1:
            saved = copy.deepcopy(run.state())
            other = Run(how, start=7)
            other.optimizer.load_state_dict(saved["optimizer"])
            assert_same(other.state(), saved)
        if step >= 2:
            other.step()
            assert_same(other.state(), run.state())
        twin.step()
        assert_same(twin.state(), run.state())


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=str)
@pytest.mark.parametrize("latent_decay", LATENT_DECAYS)
@pytest.mark.parametrize(
    ("subspace", "metric"), [(Greedy(0.2), None), (Gain(0.2), "second moment")], ids=str
)
def test_a_composition_learns(
    parametrization: Parametrization, latent_decay: float, subspace: Subspace, metric: str | None
) -> None:
    dtype = torch.float32
    metric = metric if takes(parametrization, metric) else "inputs"
    how = Composition(parametrization, Nearest(), subspace, latent_decay, dtype, None, metric)
    run = Run(how)
    losses = [run.step() for _ in range(30)]
    assert min(losses[-5:]) < 0.8 * losses[0]


def test_the_table_has_every_pair() -> None:
    fields = list(Composition.__dataclass_fields__)
    found = compositions()
    tables = dict(
        zip(
            fields,
            (PARAMETRIZATIONS, ROUNDINGS, SUBSPACES, LATENT_DECAYS, DTYPES, TRUST_RATIOS, METRICS),
            strict=True,
        )
    )
    for one, two in itertools.combinations(fields, 2):
        pairs = {(getattr(how, one), getattr(how, two)) for how in found}
        for pair in itertools.product(tables[one], tables[two]):
            if {one, two} == {"parametrization", "rounding"} and not fits(*pair):
                continue
            if {one, two} == {"parametrization", "metric"} and not takes(*pair):
                continue
            assert pair in pairs, (one, two, pair)


def test_the_table_has_every_built_in_parametrization() -> None:
    assert {type(p) for p in PARAMETRIZATIONS} == set(BUILT_IN)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=str)
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_a_quantized_layer(parametrization: Parametrization) -> None:
    """As the dense layer: values, gradients of values and inputs, state dict, one graph."""
    rep = parametrization.fit(gaussian(0, *SHAPE).float())
    layer = QuantizedLinear.from_representation(rep, gaussian(1, SHAPE[0]).float())
    x = gaussian(2, 5, SHAPE[1]).float().requires_grad_()
    weight, y = rep.decode(), layer(x)
    torch.testing.assert_close(y, nn.functional.linear(x, weight, layer.bias))
    grads = torch.autograd.grad(y.square().sum(), [x, *layer.values.parameters()])
    slope = 2 * y.detach()
    expected = parametrization.value_gradients(rep, slope.T @ x.detach())
    torch.testing.assert_close(grads[0], slope @ weight)
    for (name, _), grad in zip(layer.values.named_parameters(), grads[1:], strict=True):
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-4)
    empty = QuantizedLinear(parametrization, SHAPE[1], SHAPE[0], device="meta")
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(x), y)
    back = empty.representation()
    assert torch.equal(back.codes, rep.codes)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found = compiled(x)
    torch.testing.assert_close(found, y)
    again = torch.autograd.grad(found.square().sum(), [x, *layer.values.parameters()])
    for one, other in zip(again, grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
