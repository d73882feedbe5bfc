"""Every kind of layer: which way its matrices lie, and that steps and files keep to it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

from pvopt import (
    AdditiveCodebooks,
    Greedy,
    InputMetric,
    MatrixView,
    PVOptimizer,
    QuantizedNonzeros,
    QuantizedWeights,
    Rotation,
    Row,
    Scheme,
    SecondMoment,
    SGDValues,
    SharedValues,
    SparseNM,
    Stochastic,
    Uniform,
    UniformGrid,
    VectorCodebook,
    quantize_,
    v_step,
)
from pvopt.formats import load, save

EXPERTS, HIDDEN, MIDDLE = 3, 8, 6


class Conv1D(nn.Module):
    """As in transformers: the weight is [in, out]."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Experts(nn.Module):
    """As in transformers: the projections of all experts in one tensor each."""

    def __init__(self, transposed: bool, **attributes: object) -> None:
        super().__init__()
        shapes = (2 * MIDDLE, HIDDEN), (HIDDEN, MIDDLE)
        up, down = (shape[::-1] if transposed else shape for shape in shapes)
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, *up))
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, *down))
        for name, value in attributes.items():
            setattr(self, name, value)


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.input_size, self.output_size = EXPERTS, MIDDLE, HIDDEN
        self.weight = nn.Parameter(torch.randn(EXPERTS, MIDDLE, HIDDEN))


class Single(nn.Module):
    """Projections apart, whose way only the width tells."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.num_experts, self.hidden_size = EXPERTS, HIDDEN
        up = (HIDDEN, MIDDLE) if transposed else (MIDDLE, HIDDEN)
        self.up_proj = nn.Parameter(torch.randn(EXPERTS, *up))
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, *up[::-1]))


def sparse() -> QuantizedNonzeros:
    return QuantizedNonzeros(support=SparseNM(nonzeros=1, group_size=2), inner=UniformGrid(bits=2))


PLAIN, TRANSPOSED = MatrixView(), MatrixView(transposed=True)
OWN, OWN_TRANSPOSED = MatrixView(experts=True), MatrixView(experts=True, transposed=True)
# Kind of layer: how it is made, and the weights in it with the shapes of their matrices.
LAYERS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[MatrixView, list[int]]]]] = {
    "linear": (lambda: nn.Linear(6, 4), {"weight": (PLAIN, [4, 6])}),
    "conv": (lambda: nn.Conv2d(2, 4, 3), {"weight": (PLAIN, [4, 2, 3, 3])}),
    "conv-groups": (lambda: nn.Conv1d(4, 4, 3, groups=2), {"weight": (PLAIN, [4, 2, 3])}),
    "conv-transposed": (
        lambda: nn.ConvTranspose2d(2, 4, 3),
        {"weight": (TRANSPOSED, [4, 2, 3, 3])},
    ),
    "Conv1D": (lambda: Conv1D(4, 6), {"weight": (TRANSPOSED, [4, 6])}),
    "lstm": (
        lambda: nn.LSTM(6, 2, proj_size=1),
        {
            "weight_ih_l0": (PLAIN, [8, 6]),
            "weight_hh_l0": (PLAIN, [8, 1]),
            "weight_hr_l0": (PLAIN, [1, 2]),
        },
    ),
    "gru-cell": (
        lambda: nn.GRUCell(6, 2),
        {"weight_ih": (PLAIN, [6, 6]), "weight_hh": (PLAIN, [6, 2])},
    ),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2),
        {"in_proj_weight": (PLAIN, [12, 4]), "out_proj.weight": (PLAIN, [4, 4])},
    ),
    "attention-apart": (
        lambda: nn.MultiheadAttention(4, 2, kdim=2, vdim=6),
        {
            "q_proj_weight": (PLAIN, [4, 4]),
            "k_proj_weight": (PLAIN, [4, 2]),
            "v_proj_weight": (PLAIN, [4, 6]),
            "out_proj.weight": (PLAIN, [4, 4]),
        },
    ),
    "embedding": (lambda: nn.Embedding(5, 4, padding_idx=2), {"weight": (PLAIN, [5, 4])}),
    "weight-norm": (
        lambda: parametrizations.weight_norm(nn.Linear(6, 4)),
        {"parametrizations.weight.original1": (PLAIN, [4, 6])},
    ),
    "spectral-norm": (
        lambda: parametrizations.spectral_norm(nn.Linear(6, 4)),
        {"parametrizations.weight.original": (PLAIN, [4, 6])},
    ),
    "pruned": (
        lambda: prune.random_unstructured(nn.Linear(6, 4), "weight", 0.5),
        {"weight_orig": (PLAIN, [4, 6])},
    ),
    "experts": (
        lambda: Experts(False),
        {"gate_up_proj": (OWN, [12, 8]), "down_proj": (OWN, [8, 6])},
    ),
    "experts-transposed": (
        lambda: Experts(True),
        {"gate_up_proj": (OWN_TRANSPOSED, [12, 8]), "down_proj": (OWN_TRANSPOSED, [8, 6])},
    ),
    "experts-that-say-so": (
        lambda: Experts(False, is_transposed=True),
        {"gate_up_proj": (OWN_TRANSPOSED, [8, 12]), "down_proj": (OWN_TRANSPOSED, [6, 8])},
    ),
    "experts-with-sizes": (Parallel, {"weight": (OWN_TRANSPOSED, [8, 6])}),
    "experts-apart": (
        lambda: Single(False),
        {"up_proj": (OWN, [6, 8]), "down_proj": (OWN, [8, 6])},
    ),
    "experts-apart-transposed": (
        lambda: Single(True),
        {"up_proj": (OWN_TRANSPOSED, [6, 8]), "down_proj": (OWN_TRANSPOSED, [8, 6])},
    ),
}
each_layer = pytest.mark.parametrize("kind", LAYERS)


def make(kind: str, seed: int = 0) -> tuple[nn.Module, dict[str, tuple[MatrixView, list[int]]]]:
    torch.manual_seed(seed)
    build, weights = LAYERS[kind]
    return nn.ModuleDict({"layer": build()}), {f"layer.{n}": w for n, w in weights.items()}


@each_layer
def test_weights_are_found_by_layer_and_by_name(kind):
    model, expected = make(kind)
    p = SharedValues(num_values=3)
    usual = kind != "embedding"
    names = list(expected)
    inside = sorted(names) if kind.startswith("attention") else names
    specs = [({"layer": p}, [n for n in names if "out_proj" not in n])]
    specs += [({name: p}, [name]) for name in names]
    specs += [(p, inside), ({"layer*": p}, inside)] if usual else []
    if kind in ("weight-norm", "spectral-norm", "pruned"):  # as the layer calls it
        specs.append(({"layer.weight": p}, names))
    for spec, wanted in specs:
        weights = quantize_(make(kind)[0], spec)  # a pruned model cannot be copied
        assert sorted(weights) == sorted(wanted), spec
        for name, rep in weights.items():
            view, shape = expected[name]
            assert rep.view == view
            assert list(rep.matrices.shape) == shape
    if not usual:
        with pytest.raises(ValueError, match=r"'layer.weight' \(an embedding\)"):
            quantize_(model, p)


FORMATS = [
    SharedValues(num_values=3),
    UniformGrid(bits=2),
    sparse(),
    VectorCodebook(bits=2, group_size=2),
    Scheme(AdditiveCodebooks(num_codebooks=2, bits=2, in_group=2), Rotation(seed=1)),
]


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("kind", ["Conv1D", "conv-transposed", "experts", "experts-transposed"])
def test_every_matrix_is_fitted_by_itself(kind, form):
    model, expected = make(kind)
    before = {name: model.get_parameter(name).detach().clone() for name in expected}
    weights = quantize_(model, form)
    for name, rep in weights.items():
        assert torch.equal(model.get_parameter(name), rep.decode())
        view, _ = expected[name]
        draws = torch.Generator().manual_seed(0)
        scheme = form if isinstance(form, Scheme) else Scheme(form)
        pairs = zip(view.matrices(before[name]), view.matrices(rep.decode()), strict=True)
        for dense, decoded in pairs:
            assert torch.equal(scheme.fit(dense, generator=draws).decode(), decoded)
        assert rep.bits_per_weight() == pytest.approx(
            scheme.bits_per_weight(view.matrix_shape(rep.shape), value_bits=32), rel=0.1
        )


def gradients(model: nn.Module, step: int) -> None:
    draws = torch.Generator().manual_seed(step)
    for name, parameter in model.named_parameters():
        if not name.endswith("bias"):
            parameter.grad = torch.randn(parameter.shape, generator=draws)


def alone(model: nn.Module, weights: dict[str, MatrixView]) -> nn.ModuleDict:
    """Return a model with a linear layer for each matrix of a weight."""
    layers = nn.ModuleDict()
    for name, view in weights.items():
        for number, matrix in enumerate(view.matrices(model.get_parameter(name).detach())):
            layer = nn.Linear(matrix[0].numel(), len(matrix), bias=False)
            layer.weight = nn.Parameter(matrix.flatten(1).clone())
            layers[f"{name.replace('.', '/')}/{number}"] = layer
    return layers


RULES = {
    "greedy": dict(subspace=Greedy(0.3), values=SGDValues()),
    "latent": dict(subspace=Greedy(0.3), values=SGDValues(), latent_decay=0.0, trust_ratio=0.2),
    "metric": dict(subspace=Greedy(0.3), values=SGDValues(), metric="inputs"),
    "moment": dict(subspace=Greedy(0.3), values=SGDValues(), metric=SecondMoment()),
}


# Both ways at once with all rules and formats, each way by itself with some.
STEPS = [
    *itertools.product(["experts-transposed"], FORMATS, ["greedy", "latent"]),
    *itertools.product(["experts-transposed"], FORMATS[3:], ["metric"]),
    *itertools.product(["Conv1D", "experts"], FORMATS[1:2], RULES),
]


@pytest.mark.parametrize(("kind", "form", "rules"), STEPS, ids=str)
def test_steps_are_those_of_linear_layers(kind, form, rules):
    """The same gradients move a matrix alike, whichever way it lies and whatever lies beside it."""
    model, expected = make(kind)
    views = {name: view for name, (view, _) in expected.items()}
    other = alone(model, views)
    settings = [dict(RULES[rules]), dict(RULES[rules])]
    if settings[0].get("metric") == "inputs":
        draws = torch.Generator().manual_seed(5)
        hessians, apart = {}, {}
        for name, view in views.items():
            shape = tuple(model.get_parameter(name).shape)
            width = view.matrix_shape(shape)[1]
            x = torch.randn(view.count(shape), 2 * width, width, generator=draws)
            own = x.mT @ x
            hessians[name] = own if view.experts else own[0]
            apart |= {f"{name.replace('.', '/')}/{i}.weight": m for i, m in enumerate(own)}
        settings[0]["metric"], settings[1]["metric"] = InputMetric(hessians), InputMetric(apart)
    weights = quantize_(model, form)
    matrices = {
        f"{name.replace('.', '/')}/{number}.weight": member.clone()
        for name, rep in weights.items()
        for number, member in enumerate(rep.matrices.members())
    }
    both = [weights, QuantizedWeights(other, matrices)]
    both[1].write_()
    optimizers = [
        PVOptimizer(torch.optim.Adam(own.model.parameters(), lr=0.3), own, **rules_)
        for own, rules_ in zip(both, settings, strict=True)
    ]
    moved = torch.zeros(2, dtype=torch.int64)
    for step in range(3):
        gradients(model, step)
        for name, view in views.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            for number, matrix in enumerate(view.matrices(gradient)):
                other[f"{name.replace('.', '/')}/{number}"].weight.grad = matrix.clone()
        for place, optimizer in enumerate(optimizers):
            optimizer.step()
            moved[place] += sum(int(n) for n in optimizer.report.changed.values())
        for name, view in views.items():
            for number, matrix in enumerate(view.matrices(model.get_parameter(name).detach())):
                torch.testing.assert_close(
                    matrix, other[f"{name.replace('.', '/')}/{number}"].weight.detach()
                )
    assert moved[0] == moved[1] > 0


@each_layer
def test_a_run_is_saved_and_goes_on(kind, tmp_path):
    form, p = UniformGrid(bits=3), {"layer": UniformGrid(bits=3)}
    rules = dict(rounding=Stochastic("linear"), subspace=Uniform(0.5), latent_decay=0.3)
    model, _ = make(kind)
    weights = quantize_(model, p)
    optimizer = PVOptimizer(torch.optim.Adam(model.parameters(), lr=0.1), weights, **rules)
    gradients(model, 0)
    optimizer.step()
    assert all(rep.parametrization == form for rep in weights.values())
    save(tmp_path / "run", model, weights)
    model_b, _ = make(kind, seed=1)
    weights_b = load(tmp_path / "run", model_b).weights
    for name, rep in weights.items():
        assert weights_b[name].scheme == rep.scheme
        assert torch.equal(weights_b.parameter(name), weights.parameter(name))
    optimizer_b = PVOptimizer(torch.optim.Adam(model_b.parameters(), lr=0.1), weights_b, **rules)
    optimizer_b.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for pair in ((model, optimizer), (model_b, optimizer_b)):
        gradients(pair[0], 1)
        pair[1].step()
    for name in weights:
        assert torch.equal(weights_b.parameter(name), weights.parameter(name))
        assert torch.equal(weights[name].decode(), weights.parameter(name))


def test_the_padding_row_stays_zero():
    model = nn.ModuleDict({"emb": nn.Embedding(6, 4, padding_idx=1)})
    weights = quantize_(model, {"emb": VectorCodebook(bits=2, group_size=2)})
    optimizer = PVOptimizer(torch.optim.Adam(model.parameters(), lr=0.5), weights)
    for step in range(4):
        gradients(model, step)
        optimizer.step()
        zero = model["emb"].weight.detach().eq(0).all(1)
        assert zero.tolist() == [False, True, False, False, False, False]
    # a row that is not zero is a row like any other
    model["emb"].weight.data[1] = 3.0
    assert quantize_(model, {"emb": SharedValues(num_values=2)})["emb.weight"].space.trivial


def test_old_weight_norm_is_found_too():
    with pytest.warns(FutureWarning):
        model = nn.Sequential(weight_norm(nn.Linear(6, 4)))
    assert list(quantize_(model, UniformGrid(bits=2))) == ["0.weight_v"]


def test_other_parametrized_layers_are_left_but_can_be_named():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 4))
    weights = quantize_(model, UniformGrid(bits=2))
    assert list(weights) == ["1.weight"]
    assert "_Orthogonal" in str(weights.coverage())
    name = "0.parametrizations.weight.original"
    assert list(quantize_(model, {name: UniformGrid(bits=2)})) == [name]


def test_settings_of_the_view_come_first():
    model, _ = make("experts")
    form = Scheme(SharedValues(num_values=2), view=MatrixView(transposed=True))
    for rep in quantize_(model, form).values():
        assert rep.view == TRANSPOSED


def test_experts_have_a_trust_region_and_a_share_of_their_own():
    weight = torch.stack([torch.randn(4, 4), 100 * torch.randn(4, 4)])
    rep = Scheme(UniformGrid(bits=2, group_size=2), view=OWN).fit(weight)
    target = weight.clone()
    target[1] += 80 * torch.randn(4, 4)
    target[0] += 0.8 * torch.randn(4, 4)
    before = rep.codes["levels"].clone()
    counts = v_step(rep, target, rounding=Stochastic(), subspace=Greedy(0.25))
    changed = (rep.codes["levels"] != before).view(2, -1).sum(1)
    assert int(counts) == int(changed.sum())
    assert bool((changed > 0).all())
    assert bool((changed <= 4).all())


def test_metrics_that_do_not_fit_the_inputs_are_refused():
    model, _ = make("Conv1D")
    weights = quantize_(model, UniformGrid(bits=2))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'layer.weight'.*\[6, 6\].*\[4, 6\], got \[4, 4\]"):
        PVOptimizer(base, weights, metric=InputMetric({"layer.weight": torch.eye(4)}))
    with pytest.raises(ValueError, match="one for each of 3 matrices, got 2"):
        Scheme(UniformGrid(bits=2), view=OWN).fit(
            torch.randn(3, 4, 4), metric=[Row(torch.eye(4)), None]
        )
