"""Patterns that mean nothing say what they come close to; what stays dense is told."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from pvopt import Coverage, DenseWeight, QuantizedWeights, SharedValues, UniformGrid, quantize_

P = SharedValues(num_values=4)


def model() -> nn.Module:
    block = nn.ModuleDict({"up_proj": nn.Linear(8, 8), "norm": nn.LayerNorm(8)})
    odd = nn.ModuleDict()
    odd.A_log = nn.Parameter(torch.randn(4, 8))
    head = nn.Linear(8, 10, bias=False)
    tied = nn.Embedding(10, 8)
    head.weight = tied.weight
    return nn.ModuleDict(
        {
            "embed_tokens": tied,
            "layers": nn.ModuleList([block]),
            "rnn": nn.LSTM(8, 4),
            "mixer": odd,
            "depthwise": nn.Conv1d(8, 8, 3, groups=8),
            "lm_head": head,
            "head": nn.Linear(8, 2),
        }
    )


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"layers.0.up_prj": P}, r"did you mean 'layers.0.up_proj'"),
        ({"*.up_prj": P}, r"did you mean 'layers.0.up_proj'"),
        ({"model.layers.0.up_proj.weight": P}, r"did you mean .*'layers.0.up_proj.weight'"),
        ({"rnn.weight_ih_l1": P}, r"did you mean 'rnn.weight_ih_l0'"),
        ({"mixer": P}, r"name its weights: 'mixer.A_log' \(not the weight of a known kind"),
        ({"layers.0.norm": P}, r"'layers.0.norm.weight', 'layers.0.norm.bias' is no matrix"),
        ({"layers.0.norm.weight": P}, r"'layers.0.norm.weight' is no matrix"),
        ({"*.bias": P}, r"'layers.0.up_proj.bias', .* is no matrix"),
        ({"lm_head": P}, r"'embed_tokens.weight' is excluded by 'lm_head'"),
        ({"rnn": P, "rnn.*": P}, r"'rnn.weight_ih_l0' is taken by 'rnn', 'rnn.weight_hh_l0' is"),
        ({"layers": P}, r"matches a module, but name its weights: 'layers.0.up_proj.weight'"),
        ({"zzz": P}, r"weights are 'embed_tokens.weight', 'layers.0.up_proj.weight', .* 'mixer"),
        ({"*": P, "*.up_proj": P}, r"'\*.up_proj': 'layers.0.up_proj.weight' is taken by '\*'"),
    ],
)
def test_messages_name_what_is_near(spec, words):
    with pytest.raises(ValueError, match=rf"match no weight: .*{words}"):
        quantize_(model(), spec)


USUAL = ["layers.0.up_proj.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "head.weight"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (P, USUAL),
        ({"*": P}, USUAL),
        ({"rnn.*": P}, USUAL[1:3]),
        ({"rnn": P, "head": P}, USUAL[1:]),
        ({"embed*": P}, ["embed_tokens.weight"]),
        ({"mixer.A_log": P}, ["mixer.A_log"]),
        ({"*.A_log": P, "depthwise": P}, ["mixer.A_log", "depthwise.weight"]),
        ({"layers.0.*": P}, USUAL[:1]),
        ({"layers.*": P}, USUAL[:1]),
    ],
)
def test_patterns_mean_layers_and_weights(spec, expected):
    assert list(quantize_(model(), spec)) == expected


def test_a_tied_weight_can_be_meant_by_any_of_its_names():
    own = model()
    weights = quantize_(own, {"lm_head": P}, exclude=())
    assert list(weights) == ["embed_tokens.weight"]
    rep = weights["embed_tokens.weight"]
    again = QuantizedWeights(own, {"lm_head.weight": rep})
    assert again.parameter("lm_head.weight") is own["embed_tokens"].weight
    with pytest.raises(ValueError, match=r"one parameter twice, 'lm_head.weight', 'embed_tokens"):
        QuantizedWeights(own, {"lm_head.weight": rep, "embed_tokens.weight": rep.clone()})


def test_coverage_counts_every_parameter_once():
    own = model()
    weights = quantize_(own, P, exclude=("head", "lm_head"))
    coverage = weights.coverage()
    assert isinstance(coverage, Coverage)
    assert coverage.quantized == {
        "layers.0.up_proj.weight": 64,
        "rnn.weight_ih_l0": 128,
        "rnn.weight_hh_l0": 64,
    }
    assert coverage.dense == (
        DenseWeight("embed_tokens.weight", (10, 8), "an embedding"),
        DenseWeight("mixer.A_log", (4, 8), "not the weight of a known kind of layer"),
        DenseWeight("depthwise.weight", (8, 1, 3), "a depthwise convolution, which has no matrix"),
        DenseWeight("head.weight", (2, 8), "excluded by 'head'"),
    )
    total = sum(p.numel() for p in own.parameters())
    dense = sum(weight.count for weight in coverage.dense)
    assert 256 + dense + coverage.others == total
    assert coverage.share == 256 / (256 + dense)
    assert coverage.bits_per_weight == weights.bits_per_weight() == 2 + 3 * 4 * 32 / 256
    bits = 256 * weights.bits_per_weight() + 32 * (total - 256)
    assert coverage.bits_per_parameter == pytest.approx(bits / total)
    text = str(coverage)
    assert "3 of 7 matrices are quantized, 62.7 % of their 408 weights: 3.50 bits" in text
    assert "dense: head.weight [2, 8], excluded by 'head'" in text
    alone = QuantizedWeights(own, dict(weights.items())).coverage()
    assert alone.dense[-1] == DenseWeight("head.weight", (2, 8), "no pattern names it")


def test_nothing_is_printed_and_much_of_unknown_kinds_is_warned_about(caplog, capsys):
    with caplog.at_level(logging.INFO, "pvopt"):
        quantize_(model(), P)
    assert [record.levelname for record in caplog.records if "matrices" in record.message]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    own = model()
    own["mixer"].A_log = nn.Parameter(torch.randn(40, 8))
    with caplog.at_level(logging.WARNING, "pvopt"):
        quantize_(own, P)
    (warning,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "mixer.A_log" in warning.message
    assert capsys.readouterr() == ("", "")


def test_groups_that_do_not_fit_name_every_layer():
    own = model()
    own["head2"] = nn.Linear(12, 2)
    with pytest.raises(ValueError, match=r"'rnn.weight_hh_l0'.*\(nor 'head2.weight'\); exclude"):
        quantize_(own, UniformGrid(bits=2, group_size=8))


def test_a_parameter_that_is_gone_is_named():
    own = nn.ModuleDict({"layer": nn.Linear(4, 4)})
    weights = quantize_(own, P)
    nn.utils.parametrizations.weight_norm(own["layer"])
    with pytest.raises(ValueError, match=r"no parameter 'layer.weight' any more.*weight norm"):
        weights.write_()


def meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(4, 4)


def expanded() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.randn(1, 4).expand(4, 4))
    return layer


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: nn.LazyLinear(4), "'1.weight' has no shape yet: call the model"),
        (meta, "cannot quantize '1.weight': it is on the meta device"),
        (expanded, r"cannot quantize '1.weight': entries share memory \(expand\)"),
        (lambda: nn.Linear(4, 4, dtype=torch.complex64), "'1.weight', '1.bias' is no matrix of"),
    ],
    ids=["lazy", "meta", "expanded", "complex"],
)
def test_weights_without_numbers_of_their_own_are_named(layer, words):
    model = nn.Sequential(nn.Linear(4, 4), layer())
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=words):
        quantize_(model, {"0": P, "1": P})
    assert torch.equal(model[0].weight, before)


def test_no_pattern_at_all_is_refused():
    with pytest.raises(ValueError, match="spec must have a pattern, got none"):
        quantize_(nn.Linear(4, 4), {})
