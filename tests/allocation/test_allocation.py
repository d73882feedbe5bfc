"""Formats under a budget: the choice against enumeration, divergences against an oracle."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="the language-model extra is not installed")

from pvopt import parse_scheme
from pvopt.allocation import Option, Sensitivities, allocate, candidates_near, mix_formats_, mixed
from pvopt.allocation.sensitivities import Predictions
from pvopt.cli import main
from pvopt.formats import CheckpointError, storage_report
from pvopt.llm import load_model
from pvopt.selection.fused import fused_groups
from pvopt.starts import Fit

numbers = st.floats(0, 1e3, allow_subnormal=False)
options = st.builds(Option, bits=st.integers(1, 50), loss=numbers)
some = st.lists(options, min_size=1, max_size=3)


@settings(max_examples=20)
@given(groups=st.lists(some, min_size=1, max_size=5), data=st.data())
def test_the_choice_is_that_of_enumeration(groups, data):
    least = sum(min(option.bits for option in group) for group in groups)
    budget = data.draw(st.integers(least, least + 60))
    fitting = [c for c in itertools.product(*groups) if sum(o.bits for o in c) <= budget]
    best = min(math.fsum(o.loss for o in choice) for choice in fitting)
    found = [group[number] for group, number in zip(groups, allocate(groups, budget), strict=True)]
    assert sum(option.bits for option in found) <= budget
    assert math.fsum(option.loss for option in found) <= best + 1e-6 * max(1.0, best)


@pytest.mark.parametrize(
    ("groups", "budget", "message"),
    [
        ([[Option(2, 1.0)], [Option(3, 1.0)]], 4, "budget must be at least 5"),
        ([[Option(2, 1.0)], []], 4, "every group"),
        ([[Option(2, math.nan)]], 4, "finite"),
        ([[Option(2, 1.0)]], math.inf, "budget must be"),
    ],
)
def test_impossible_budgets_are_refused(groups, budget, message):
    with pytest.raises(ValueError, match=message):
        allocate(groups, budget)


@pytest.mark.parametrize(
    ("form", "bits", "names"),
    [
        ("grid:2g64s", 2.25, ["grid:1g64s", "grid:2g64s", "grid:3g64s", "grid:4g64s"]),
        ("had+e8p:3", 2.5, ["had+e8p:2", "had+e8p:3", "had+e8p:4"]),
        ("2x8g8", 3.2, ["1x8g8", "2x8g8", "3x8g8", "4x8g8"]),
    ],
)
def test_candidates_are_of_one_family(form, bits, names):
    assert list(candidates_near(parse_scheme(form), [(256, 256)], bits)) == names


@pytest.mark.parametrize(
    ("form", "bits", "message"),
    [("ternary", 2.0, "no number of bits"), ("grid:2g64s", 1.0, "bits must be at least 1.250")],
)
def test_families_without_such_sizes_are_refused(form, bits, message):
    with pytest.raises(ValueError, match=message):
        candidates_near(parse_scheme(form), [(64, 64)], bits)


def test_groups_are_what_servers_join():
    names = [
        "a.0.q_proj.weight",
        "a.0.k_proj.weight",
        "a.1.q_proj.weight",
        "m.experts.0.up_proj.weight",
        "m.experts.1.down_proj.weight",
        "m.shared_experts.up_proj.weight",
        "m.gate.weight",
    ]
    groups = fused_groups(names)
    assert groups == [tuple(names[:2]), (names[2],), tuple(names[3:5]), (names[5],), (names[6],)]


@pytest.fixture
def setting():
    """Return a tiny model, sequences to calibrate and to measure on, weights and candidates."""
    model = load_model("tiny-llama").model
    tokens = torch.randint(0, 256, (6, 24), generator=torch.Generator().manual_seed(0))
    names = [n for n, _ in model.named_parameters() if ".mlp." in n]
    candidates = {name: parse_scheme(name) for name in ("grid:2g32s", "grid:3g32s", "grid:4g32s")}
    return model, tokens[:4], tokens[4:], names, candidates


@torch.no_grad()
def test_divergences_are_those_of_whole_distributions(setting):
    model, _, tokens, names, _ = setting
    masks = torch.ones_like(tokens)
    masks[1, 20:] = 0
    before = model(input_ids=tokens).logits.double().log_softmax(-1)
    plain, padded = Predictions(model, tokens), Predictions(model, tokens, masks)
    for name in names:
        model.get_parameter(name).mul_(0.5)
    after = model(input_ids=tokens).logits.double().log_softmax(-1)
    each = (before.exp() * (before - after)).sum(-1)
    assert plain.divergence(model) == pytest.approx(float(each.mean()), rel=1e-4)
    assert padded.divergence(model) == pytest.approx(float(each[masks != 0].mean()), rel=1e-4)


def test_mixed_formats_keep_to_the_budget_and_measure_once(setting, tmp_path, monkeypatch):
    model, calibration, held_out, names, candidates = setting
    dense = copy.deepcopy(model.state_dict())
    measured = []
    divergence = Predictions.divergence

    def counted(self, other):
        measured.append(divergence(self, other))
        return measured[-1]

    monkeypatch.setattr(Predictions, "divergence", counted)

    def mix(bits):
        model.load_state_dict(dense)
        measured.clear()
        arguments = (model, calibration, held_out, names, candidates, bits)
        return mix_formats_(*arguments, start=Fit(), work=tmp_path)

    first = mix(3.2)
    # three formats as a whole and on four groups alone, then the mixture
    assert len(measured) == 3 * 5 + first.mixes
    assert first.mixes
    assert 2.5 <= first.bits <= 3.2
    assert first.uniform == "grid:2g32s"
    assert first.divergence < first.uniform_divergence
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, dense[n])}
    assert changed == set(names)
    first.calibration.weights.check()
    assert {n: rep.scheme.name for n, rep in first.calibration.weights.items()} == first.formats
    original = load_model("tiny-llama").model
    found = divergence(Predictions(original, held_out), model)
    assert found == pytest.approx(first.divergence, rel=1e-5)

    again = mix(3.2)
    assert measured == []
    assert again.formats == first.formats
    other = mix(3.0)
    assert len(measured) <= 1
    assert other.bits <= 3.0
    with pytest.raises(ValueError, match=r"bits must be at least 2.500, .* got 2.4"):
        mix(2.4)
    with pytest.raises(ValueError, match="bits must be positive and finite, got inf"):
        mix(math.inf)
    with pytest.raises(CheckpointError, match="other settings"):
        mix_formats_(model, calibration, held_out, names, candidates, 3.2, work=tmp_path, seed=1)


def test_a_mixture_that_diverges_more_is_not_taken(setting, monkeypatch):
    """The sum of the groups' divergences is an estimate: here it is wrong on purpose."""
    model, calibration, held_out, names, candidates = setting
    monkeypatch.setattr(mixed, "allocate", lambda groups, budget: [0, *[1] * (len(groups) - 1)])
    candidates = {"grid:1g32s": parse_scheme("grid:1g32s"), "grid:4g32s": candidates["grid:4g32s"]}
    found = mix_formats_(
        model, calibration, held_out, names, dict(reversed(candidates.items())), 5.0, start=Fit()
    )
    assert set(found.formats.values()) == {"grid:4g32s"} == {found.uniform}
    assert not found.mixes
    assert found.divergence == found.uniform_divergence
    found.calibration.weights.check()


def test_damaged_divergences_are_refused(tmp_path):
    file = tmp_path / "sensitivities.json"
    for content in ("{", "[]", '{"settings": {}, "divergences": {"a": 1}}'):
        file.write_text(content)
        with pytest.raises(CheckpointError, match=r"sensitivities.json: is damaged"):
            Sensitivities(file, {})


FLAGS = ["quantize", "--model", "tiny-llama", "--format", "grid:2g32s", "--bits", "3"]


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("To be, or not to be, that is the question. " * 40)
    return str(file)


def test_the_command_keeps_to_the_bits(text, tmp_path, capsys):
    calibration = ["--calibration", text, "--calibration-length", "32", "--start", "fit"]
    calibration += ["--calibration-tokens", "96", "--candidates", "grid:2g32s,grid:4g32s"]
    assert main([*FLAGS, *calibration, "--out", str(tmp_path / "out")]) == 0
    assert " bits, " in capsys.readouterr().out
    assert 2.5 <= storage_report(tmp_path / "out").bits_per_weight_16 <= 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--bits needs a text"),
        (["--calibration", "TEXT", "--layer", "*=grid:2"], "--layer does not go with --bits"),
        (["--calibration", "TEXT", "--dry-run"], "--dry-run does not go with --bits"),
        *(
            (["--calibration", "TEXT", "--bits", bits], "--bits must be positive and finite")
            for bits in ("-1", "0", "nan", "inf")
        ),
        (["--calibration", "TEXT", "--bits", "99"], "bits must be less than 8.5"),
        (["--calibration", "TEXT", "--bits", "0.5"], "bits must be at least 1.5"),
        (
            ["--calibration", "TEXT", "--calibration-tokens", "64", "--calibration-length", "64"],
            "--bits needs two sequences",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message, text, tmp_path, capsys):
    flags = [text if flag == "TEXT" else flag for flag in flags]
    assert main([*FLAGS, *flags, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
