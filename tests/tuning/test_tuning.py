from __future__ import annotations

import dataclasses
import signal

import pytest
import torch
from torch import nn

import pvopt
from pvopt.parametrizations import as_scheme
from pvopt.tuning import (
    Inputs,
    RecordsFile,
    StopRequest,
    TuneSettings,
    build_optimizer,
)
from pvopt.tuning.optimizers import check_fits


@pytest.mark.parametrize(
    ("text", "parametrization"),
    [
        ("2x8g8", pvopt.AdditiveCodebooks(num_codebooks=2, bits=8, in_group=8)),
        ("1x16g8", pvopt.AdditiveCodebooks(num_codebooks=1, bits=16, in_group=8)),
        ("2x8g2x4", pvopt.AdditiveCodebooks(num_codebooks=2, bits=8, in_group=4, out_group=2)),
        ("vq:8g4", pvopt.VectorCodebook(bits=8, group_size=4)),
        ("grid:2g64", pvopt.UniformGrid(bits=2, group_size=64)),
        ("grid:4g128s", pvopt.UniformGrid(bits=4, group_size=128, symmetric=True)),
        ("grid:4", pvopt.UniformGrid(bits=4)),
        ("grid:4s", pvopt.UniformGrid(bits=4, symmetric=True)),
        ("values:4", pvopt.SharedValues(num_values=4)),
        ("e8p:3", pvopt.E8P(bits=3)),
        ("had+e8p:2", pvopt.Scheme(pvopt.E8P(bits=2), pvopt.Rotation())),
        (
            "q6+2x8g8",
            pvopt.QuantizedScales(
                inner=pvopt.AdditiveCodebooks(num_codebooks=2, bits=8, in_group=8)
            ),
        ),
        (
            "had+sparse:25%+vq:8g4",
            pvopt.Scheme(
                pvopt.QuantizedNonzeros(
                    support=pvopt.Sparse(density=0.25),
                    inner=pvopt.VectorCodebook(bits=8, group_size=4),
                ),
                pvopt.Rotation(),
            ),
        ),
        (
            "had+q4+e8p:2/64",
            pvopt.Scheme(
                pvopt.QuantizedScales(inner=pvopt.E8P(bits=2, scale_group=64), bits=4),
                pvopt.Rotation(),
            ),
        ),
        (
            "had+2x8g8",
            pvopt.Scheme(
                pvopt.AdditiveCodebooks(num_codebooks=2, bits=8, in_group=8), pvopt.Rotation()
            ),
        ),
        (
            "2:4+grid:2g64",
            pvopt.QuantizedNonzeros(
                support=pvopt.SparseNM(nonzeros=2, group_size=4),
                inner=pvopt.UniformGrid(bits=2, group_size=64),
            ),
        ),
    ],
)
def test_formats_and_their_names(text, parametrization):
    scheme = as_scheme(parametrization)
    assert pvopt.parse_scheme(text) == scheme
    assert scheme.name == text
    if not text.startswith("2:4"):  # where the colon is part of the form
        assert pvopt.parse_scheme(text.replace(":", "")) == scheme


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is unknown; the forms are MxBg\[Ox\]N"),
        ("2x8", r"'2x8' is unknown \(did you mean '2x8g8'\?\); the forms are"),
        ("2x8g8 extra", "is unknown"),
        ("0x8g8", r"'0x8g8' .*num_codebooks must be in 1\.\.16, got 0"),
        ("grid:9g64", r"bits must be in 1\.\.8"),
        ("e8p:5", r"bits must be in 2\.\.4, got 5"),
        ("q6+grid:2", "inner must be VectorCodebook, AdditiveCodebooks or E8P"),
        ("grid:2/64", "'grid:2/64' is unknown"),
        ("had+2x8", "'2x8' is unknown"),
    ],
)
def test_format_errors(text, message):
    with pytest.raises(ValueError, match=message):
        pvopt.parse_scheme(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"recipe": "pv"},
        {"base": "lbfgs"},
        {"loss": "mse"},
        {"lr_schedule": "step"},
        {"dtype": "int8"},
        {"steps": 0},
        {"length": 1},
        {"batch": 4, "micro_batch": 3},
        {"code_lr": 0.0},
        {"code_lr": float("nan")},
        {"lr": -1.0},
        {"values_lr": float("inf")},
        {"temperature": 0.0},
        {"subspace": "greedy:0"},
        {"subspace": "greedy:much"},
        {"subspace": "best"},
        {"subspace": "gain", "recipe": "continuous_only"},
        {"rounding": "up"},
        {"rounding": "forced", "recipe": "continuous_only"},
        {"metric": "manhattan"},
        {"metric": "second-moment", "base": "sgd"},
        {"trust_ratio": -0.1},
        {"latent_decay": 1.5},
        {"beam": 0},
        {"beam": 4096},
        {"window": 0},
        {"base": "adafactor", "relative_code_lr": False},
    ],
)
def test_wrong_settings_cannot_be_made(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if len(wrong) == 1 else "must|fit"):
        TuneSettings(**wrong)


@pytest.mark.parametrize("lr_schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 4, 10, 12])
def test_learning_rates_rise_then_fall_and_never_stop(lr_schedule, warmup):
    settings = TuneSettings(steps=10, warmup=warmup, lr_schedule=lr_schedule)
    factors = [settings.lr_factor(step) for step in range(10)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:warmup] == [(step + 1) / warmup for step in range(min(10, warmup))]
    falling = factors[warmup:]
    assert falling == sorted(falling, reverse=True)
    if falling:
        assert falling[0] == 1
        assert (falling[-1] == 1) == (lr_schedule == "constant" or len(falling) == 1)


@pytest.mark.parametrize("settings", [TuneSettings, Inputs])
def test_every_setting_is_explained(settings):
    found = [field.metadata["help"] for field in dataclasses.fields(settings)]
    assert all(len(text) > 10 for text in found)
    assert len(set(found)) == len(found)


def test_zero_weights_have_a_learning_rate_and_adafactor_scales_by_itself():
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 2, bias=False))
    nn.init.zeros_(model[0].weight)
    weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
    for base in ("adamw", "adafactor"):
        settings = TuneSettings(base=base, code_lr=0.5, values_lr=0.1)
        groups = build_optimizer(weights, settings).param_groups
        assert groups[0]["lr"] == 0.5
        rms = float(model[1].weight.detach().square().mean().sqrt())
        assert groups[1]["lr"] == pytest.approx(0.5 * (rms if base == "adamw" else 1))
        assert all(g["lr"] * g["values_lr_ratio"] == pytest.approx(0.1) for g in groups)
    with pytest.raises(ValueError, match="must be relative"):
        TuneSettings(base="adafactor", relative_code_lr=False)


def test_settings_reach_the_optimizer():
    model = nn.Linear(8, 4)
    weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
    settings = TuneSettings(subspace="greedy:0.2", trust_ratio=0.3, latent_decay=0.4, seed=5)
    for group in build_optimizer(weights, settings).param_groups:
        found = [group[name] for name in ("fraction", "trust_ratio", "latent_decay", "seed")]
        assert found == [0.2, 0.3, 0.4, 5]
    defaults = build_optimizer(weights, TuneSettings()).param_groups[0]
    assert (defaults["trust_ratio"], defaults["latent_decay"]) == (None, 0.0)


@pytest.mark.parametrize("base", ["adafactor", "adam", "rmsprop"])
def test_subspace_and_metric_reach_the_optimizer(base):
    model = nn.Linear(16, 8)
    weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
    settings = TuneSettings(subspace="gain:0.2", metric="second-moment", base=base)
    optimizer = build_optimizer(weights, settings)
    assert isinstance(optimizer.subspace, pvopt.Gain)
    assert isinstance(optimizer.metric, pvopt.SecondMoment)
    model(torch.ones(2, 16)).square().sum().backward()
    optimizer.step()
    assert optimizer.report.changed_groups <= 26
    plain = build_optimizer(weights, TuneSettings())
    assert (plain.subspace, plain.metric) == (pvopt.Greedy(0.01), None)


@pytest.mark.parametrize("recipe", ["ste", "stochastic_rounding", "naive_pv", "subspace_pv"])
def test_any_recipe_takes_another_subspace_and_rounding(recipe):
    weights = pvopt.quantize_(nn.Linear(16, 8), pvopt.UniformGrid(bits=2))
    settings = TuneSettings(recipe=recipe, subspace="uniform:0.3", rounding="stochastic:linear")
    optimizer = build_optimizer(weights, settings)
    assert (optimizer.subspace, optimizer.rounding) == (
        pvopt.Uniform(0.3),
        pvopt.Stochastic("linear"),
    )


def test_the_window_is_an_option_of_the_search():
    trellis = pvopt.Trellis(state_bits=6, out_group=8, in_group=4)
    weights = pvopt.quantize_(nn.Linear(16, 8), trellis)
    check_fits(TuneSettings(window=5), trellis)
    assert build_optimizer(weights, TuneSettings(window=5)).search.window == 5


def test_the_beam_is_an_option_of_the_search():
    books = pvopt.AdditiveCodebooks(num_codebooks=2, bits=2, in_group=4)
    weights = pvopt.quantize_(nn.Linear(16, 8), books)
    assert build_optimizer(weights, TuneSettings(beam=3)).search.beam_size == 3
    assert build_optimizer(weights, TuneSettings()).search.beam_size is None


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("grid:2", {"beam": 3}, "beam does not fit UniformGrid, whose search is exact"),
        ("vq:4g2", {"beam": 3}, "beam does not fit VectorCodebook"),
        ("had+e8p:2", {"beam": 3}, "beam does not fit E8P"),
        ("2x8g8", {"window": 8}, "window does not fit AdditiveCodebooks, whose groups are not"),
        ("q6+vq:4g2", {"beam": 3}, "beam does not fit QuantizedScales"),
    ],
)
def test_settings_that_a_format_has_no_use_for_are_refused(text, settings, message):
    with pytest.raises(ValueError, match=message):
        check_fits(TuneSettings(**settings), pvopt.parse_scheme(text).parametrization)


@pytest.mark.parametrize("text", ["2x8g8", "had+e8p:3", "q6+2x8g8", "2:4+2x4g8"])
def test_searches_with_a_beam_take_its_size(text):
    check_fits(TuneSettings(beam=3), pvopt.parse_scheme(text).parametrization)


def test_a_metric_that_does_not_fit_is_a_mistake_of_the_user():
    weights = pvopt.quantize_(nn.Linear(16, 8), pvopt.parse_scheme("had+grid:2"))
    with pytest.raises(ValueError, match="metric"):
        build_optimizer(weights, TuneSettings(metric="second-moment"))


def test_records_survive_torn_lines_and_infinities(tmp_path):
    records = RecordsFile(tmp_path / "m.jsonl")
    assert records.read() == []
    for step in range(3):
        records.append("step", step, loss=float("inf") if step == 1 else 1.5)
    with open(records.path, "a") as file:
        file.write('{"kind": "step", "st')
    assert [record["loss"] for record in records.read()] == [1.5, None, 1.5]
    records.forget_after(1)
    records.append("step", 7, loss=0.0, parts={"a": [float("nan"), 2.0]})
    assert [record["step"] for record in records.read()] == [0, 1, 7]
    assert records.read()[-1]["parts"] == {"a": [None, 2.0]}
    assert "Infinity" not in records.path.read_text()


def test_the_second_signal_acts_as_before():
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with StopRequest() as stop:
            assert not stop()
            signal.raise_signal(signal.SIGINT)
            assert stop()
            assert stop.exit_code == 130
            assert seen == []
            signal.raise_signal(signal.SIGINT)
            assert seen == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
        assert len(seen) == 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_tensors_of_the_training_state_are_plain(tmp_path):
    """weights_only reads it, so do not smuggle objects into the settings."""
    settings = dataclasses.asdict(TuneSettings())
    torch.save(settings, tmp_path / "s.pt")
    assert TuneSettings(**torch.load(tmp_path / "s.pt", weights_only=True)) == TuneSettings()
