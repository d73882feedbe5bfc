"""quantize_ and QuantizedWeights: which weights are chosen, and all or nothing."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from pvopt import (
    AdditiveCodebooks,
    Diagonal,
    QuantizedWeights,
    SharedValues,
    UniformGrid,
    VectorCodebook,
    quantize_,
)

GRID = UniformGrid(bits=2, group_size=2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Linear(8, 12, bias=False)
        self.down_proj = nn.Linear(12, 8)
        self.norm = nn.LayerNorm(8)


class Model(nn.Module):
    """As language models are named; the head may be tied to the embedding."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(10, 8)
        self.layers = nn.ModuleList([Block(), Block()])
        self.conv = nn.Conv2d(2, 4, 3)
        self.lm_head = nn.Linear(8, 10, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight


def make(seed: int = 0, tied: bool = False) -> Model:
    model = Model(tied)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


LINEAR = [f"layers.{i}.{name}_proj.weight" for i in (0, 1) for name in ("up", "down")]
LAYERS = [*LINEAR, "conv.weight"]


def test_one_parametrization_is_for_all_layers_but_the_head():
    model = make()
    parameters = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    weights = quantize_(model, GRID)
    assert list(weights) == LAYERS
    assert len(weights) == 5
    for name, p in model.named_parameters():
        assert p is parameters[name]
        if name in weights:
            assert torch.equal(p, weights[name].decode())
            assert weights.parameter(name) is p
            assert not torch.equal(p, before[name])
        else:
            assert torch.equal(p, before[name])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"layers.0.*": GRID}, LINEAR[:2]),
        ({"*.up_proj": GRID}, LINEAR[::2]),
        ({"layers.1.down_proj": GRID}, [LINEAR[3]]),
        ({"layers.1.down_proj.weight": GRID}, [LINEAR[3]]),
        ({"embed_tokens.weight": GRID}, ["embed_tokens.weight"]),
        ({"conv.weight": UniformGrid(bits=2)}, ["conv.weight"]),
        ({"conv": GRID}, ["conv.weight"]),
        ({"embed*": GRID}, ["embed_tokens.weight"]),
        ({"*": GRID}, LAYERS),
        # a name that spells out the parameter reaches every parameter of two or more dimensions
        ({"*weight": UniformGrid(bits=2)}, ["embed_tokens.weight", *LINEAR, "conv.weight"]),
    ],
)
def test_patterns(spec, expected):
    assert list(quantize_(make(), spec)) == expected


def test_the_first_match_wins():
    spec = {
        "layers.0.up_proj": SharedValues(num_values=3),
        "*.up_proj": VectorCodebook(bits=2, group_size=2),
        "*": GRID,
    }
    weights = quantize_(make(), spec)
    assert weights[LINEAR[0]].parametrization == SharedValues(num_values=3)
    assert weights[LINEAR[2]].parametrization == VectorCodebook(bits=2, group_size=2)
    assert weights[LINEAR[1]].parametrization == weights[LINEAR[3]].parametrization == GRID


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        (("lm_head", "layers.0.*"), LAYERS[2:]),
        (("*.down_proj", "lm_head"), [*LINEAR[::2], "conv.weight"]),
        (("layers.1.up_proj.weight", "lm_head"), [LINEAR[0], LINEAR[1], *LAYERS[3:]]),
        ((), [*LAYERS, "lm_head.weight"]),
        (iter(["lm_head", "layers.0.*"]), LAYERS[2:]),
    ],
)
def test_exclude(exclude, expected):
    assert list(quantize_(make(), GRID, exclude=exclude)) == expected


def test_a_model_that_is_one_layer():
    model = nn.Linear(8, 4)
    assert list(quantize_(model, GRID)) == ["weight"]
    model = nn.Linear(8, 4)
    assert list(quantize_(model, {"weight": GRID})) == ["weight"]


@pytest.mark.parametrize("name", ["weight", "my_weight", "w"])
def test_layers_with_confusing_names(name):
    model = nn.Sequential(OrderedDict([(name, nn.Linear(8, 4)), ("other", nn.Linear(8, 4))]))
    assert list(quantize_(model, {name: GRID})) == [f"{name}.weight"]


def test_patterns_without_a_match_are_refused_and_change_nothing():
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"\['\*.mlp', 'norm.weight'\] match no weight.*up_proj"):
        quantize_(model, {"*.up_proj": GRID, "*.mlp": GRID, "norm.weight": GRID})
    for spec in ({"lm_head": GRID}, {"*.norm.weight": GRID}, {"*.bias": GRID}):
        with pytest.raises(ValueError, match="match no weight"):
            quantize_(model, spec)
    check_unchanged(model, before)


def check_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_groups_that_do_not_fit_name_the_layer_and_change_nothing():
    model = make()
    before = copy.deepcopy(model.state_dict())
    words = r"'layers.0.up_proj.weight'.*group_size=3.*\[12, 8\].*\[1, 2, 4, 8\]"
    with pytest.raises(ValueError, match=words):
        quantize_(model, {"*.down_proj": GRID, "*": UniformGrid(bits=2, group_size=3)})
    with pytest.raises(ValueError, match=r"'layers.0.down_proj.weight'.*out_group=3"):
        quantize_(model, AdditiveCodebooks(num_codebooks=1, bits=2, in_group=2, out_group=3))
    check_unchanged(model, before)


def test_a_weight_that_is_not_finite_names_the_layer_and_changes_nothing():
    model = make()
    with torch.no_grad():
        model.layers[1].up_proj.weight[2, 3] = torch.nan
    before = copy.deepcopy(model.state_dict())
    del before["layers.1.up_proj.weight"]
    with pytest.raises(ValueError, match=r"'layers.1.up_proj.weight'.*weight must be finite"):
        quantize_(model, GRID)
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_something_else_as_spec_is_refused():
    with pytest.raises(
        TypeError, match=r"spec\['\*'\] must be a Parametrization or Scheme, got '2x8g8'"
    ):
        quantize_(make(), {"*": "2x8g8"})


def test_tied_weights_are_quantized_once_and_stay_tied():
    model = make(tied=True)
    weights = quantize_(model, {"embed_tokens.weight": GRID, "layers.*": GRID})
    assert list(weights) == ["embed_tokens.weight", *LINEAR]
    assert model.lm_head.weight is model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, weights["embed_tokens.weight"].decode())
    # the head's name is an alias: by default nothing is quantized through it
    model = make(tied=True)
    assert list(quantize_(model, GRID)) == LAYERS


def test_a_head_that_is_left_dense_for_the_embedding_is_said(caplog):
    """``exclude=()`` asks for it; the default does not."""
    with caplog.at_level(logging.WARNING, "pvopt"):
        quantize_(make(tied=True), GRID)
        quantize_(make(), GRID, exclude=())
        quantize_(make(tied=True), {"lm_head": GRID, "*": GRID}, exclude=())
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "pvopt"):
        weights = quantize_(make(tied=True), GRID, exclude=())
    (record,) = caplog.records
    assert "'lm_head' stays dense: its weight is 'embed_tokens.weight'" in record.getMessage()
    (reason,) = [w.reason for w in weights.coverage().dense if w.name == "embed_tokens.weight"]
    assert "'lm_head'" in reason


def test_metrics_reach_the_fit():
    name = LINEAR[0]
    metric = torch.ones(12, 8)
    metric[:, 0] = 1000.0
    plain, informed = make(), make()
    original = plain.get_parameter(name).detach().clone()
    quantize_(plain, UniformGrid(bits=2))
    quantize_(informed, UniformGrid(bits=2), metrics={name: Diagonal(metric)})

    def error(model: nn.Module) -> float:
        difference = model.get_parameter(name).detach() - original
        return float((difference.square() * metric).sum())

    assert error(informed) < error(plain)
    for other in LINEAR[1:]:
        assert torch.equal(informed.get_parameter(other), plain.get_parameter(other))


def test_bad_metrics_are_refused_and_change_nothing():
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"not quantized: \['lm_head.weight'\]"):
        quantize_(model, GRID, metrics={"lm_head.weight": Diagonal(torch.ones(10, 8))})
    with pytest.raises(ValueError, match=rf"'{LINEAR[1]}'.*must have shape"):
        quantize_(model, GRID, metrics={LINEAR[1]: Diagonal(torch.ones(8, 13))})
    check_unchanged(model, before)


def test_the_seed_decides_the_draws_and_the_global_generator_none():
    p = VectorCodebook(bits=3, group_size=2)
    models = [make(), make(), make()]
    state = torch.get_rng_state()
    results = [
        quantize_(model, p, seed=seed)[LINEAR[0]].decode()
        for model, seed in zip(models, (0, 0, 1), strict=True)
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_weight_is_quantized_alike_whatever_else_is():
    p = VectorCodebook(bits=3, group_size=2)
    whole, alone = quantize_(make(), p), quantize_(make(), {LINEAR[2][:-7]: p})
    assert torch.equal(whole[LINEAR[2]].decode(), alone[LINEAR[2]].decode())


def test_progress_sees_every_name():
    seen: list[str] = []

    def watch(names: list[str]) -> list[str]:
        seen.extend(names)
        return names

    quantize_(make(), GRID, progress=watch)
    assert seen == LAYERS


def test_low_precision_models_keep_their_dtype():
    model = make().to(torch.bfloat16)
    weights = quantize_(model, GRID)
    for name, rep in weights.items():
        assert weights.parameter(name).dtype == torch.bfloat16
        assert rep.dtype == torch.float32
        assert torch.equal(weights.parameter(name), rep.decode().bfloat16())


def test_frozen_parameters_are_quantized_too_and_stay_frozen():
    model = make().requires_grad_(False)
    weights = quantize_(model, GRID)
    assert len(weights) == 5
    assert not any(p.requires_grad for p in model.parameters())
    assert weights.other_parameters() == []


def test_parameters_fall_into_quantized_and_others():
    model = make()
    model.conv.requires_grad_(False)
    weights = quantize_(model, GRID, exclude=("conv", "lm_head"))
    quantized, others = weights.parameters(), weights.other_parameters()
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in quantized] == LINEAR
    rest = {n for n in names.values() if n not in LINEAR and not n.startswith("conv")}
    assert {names[id(p)] for p in others} == rest


def test_write_restores_the_decoded_weights():
    model = make()
    weights = quantize_(model, GRID)
    expected = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for p in weights.parameters():
            p.zero_()
    weights.write_()
    check_unchanged(model, expected)
    weights[LINEAR[0]].values["scales"].mul_(2)
    weights.write_()
    torch.testing.assert_close(model.get_parameter(LINEAR[0]), 2 * expected[LINEAR[0]])
    assert model.get_parameter(LINEAR[0]).requires_grad


def test_bits_are_the_mean_over_weights():
    weights = quantize_(make(), {"*.up_proj": GRID, "*.down_proj": UniformGrid(bits=4)})
    for value_bits, stored in ((None, 32), (16, 16), (0, 0)):
        # up: 96 codes of 2 bits, 2 x 48 floats; down: 96 codes of 4 bits, 2 x 8 floats
        expected = ((96 * 2 + 96 * stored) + (96 * 4 + 16 * stored)) / 192
        assert weights.bits_per_weight(value_bits=value_bits) == pytest.approx(expected)
    assert QuantizedWeights(make(), {}).bits_per_weight() == 0.0


def test_names_and_shapes_are_checked():
    model = make()
    rep = SharedValues(num_values=2).fit(torch.randn(12, 8))
    with pytest.raises(ValueError, match="names 'up_proj', which is no parameter"):
        QuantizedWeights(model, {"up_proj": rep})
    with pytest.raises(ValueError, match=r"'layers.0.down_proj.weight'.*\[8, 12\].*\[12, 8\]"):
        QuantizedWeights(model, {LINEAR[1]: rep})
    weights = QuantizedWeights(model, {LINEAR[0]: rep})
    assert weights[LINEAR[0]] is rep
    with pytest.raises(KeyError):
        weights[LINEAR[1]]


def test_the_model_is_followed_by_name():
    model = make()
    weights = quantize_(model, GRID)
    new = nn.Parameter(torch.zeros(12, 8))
    model.layers[0].up_proj.weight = new
    assert weights.parameter(LINEAR[0]) is new
    weights.write_()
    assert torch.equal(new, weights[LINEAR[0]].decode())
