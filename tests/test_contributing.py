"""The parts that CONTRIBUTING.md shows work wherever parts are used, as one module of a user."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pvopt
from pvopt.rules.rounding import ROUNDINGS
from pvopt.rules.subspace import SUBSPACES
from pvopt.spaces import SPACES
from pvopt.starts import STARTS, Fit

GUIDE = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.M | re.S)
    folder = tmp_path_factory.mktemp("parts")
    (folder / "my_parts.py").write_text("\n\n".join(blocks), encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("my_parts")
    finally:
        sys.path.remove(str(folder))
        module = sys.modules.pop("my_parts")
        for registry in REGISTRIES:
            for cls in vars(module).values():
                if isinstance(cls, type) and cls.__module__ == "my_parts" and cls in registry:
                    registry.forget(cls)


REGISTRIES = (pvopt.PARAMETRIZATIONS, SPACES, ROUNDINGS, SUBSPACES, STARTS)
SCHEMES = ["powers:3", "pairs+powers:2", "pairs+grid:2g8", "pairs+vq:4g2", "had+powers:4"]


def model_and_weights(text, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8))
    spec = {"0": pvopt.parse_scheme(text)}
    return model, pvopt.quantize_(model, spec)


@pytest.mark.parametrize("text", SCHEMES)
def test_names_are_lossless(parts, text):
    scheme = pvopt.parse_scheme(text)
    assert scheme.name == text
    assert pvopt.Scheme.from_json(scheme.to_json()) == scheme


@pytest.mark.parametrize(
    ("registry", "text"),
    [(ROUNDINGS, "lazy:0.25"), (SUBSPACES, "run:0.1"), (STARTS, "tempered:0.75")],
    ids=lambda value: getattr(value, "kind", value),
)
def test_rules_have_names(parts, registry, text):
    assert registry.name(registry.parse(text)) == text


@pytest.mark.parametrize("text", SCHEMES)
def test_fit_is_close_and_bits_are_those_of_the_streams(parts, text):
    weight = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    scheme = pvopt.parse_scheme(text)
    rep = scheme.fit(weight)
    assert (rep.decode() - weight).norm() < 0.75 * weight.norm()
    rep.check_codes()
    if text == "powers:3":
        assert scheme.bits_per_weight((12, 16)) == 3 + 16 * 12 / (12 * 16)


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("rounding", ["nearest", "forced", "stochastic", "lazy:0.7"])
@pytest.mark.parametrize("subspace", ["all", "greedy:0.3", "run:0.3", "gain:0.3"])
def test_optimizer(parts, text, rounding, subspace):
    model, weights = model_and_weights(text)
    before = weights["0.weight"].group_codes().clone()
    optimizer = pvopt.PVOptimizer(
        torch.optim.Adam(model.parameters(), lr=0.1),
        weights,
        rounding=ROUNDINGS.parse(rounding),
        subspace=SUBSPACES.parse(subspace),
        latent_decay=0.0,
        trust_ratio=0.5,
    )
    inputs = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (model(inputs) - inputs[:, :8]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert torch.equal(model[0].weight, weights["0.weight"].decode())
    assert losses[-1] < losses[0]
    assert not torch.equal(weights["0.weight"].group_codes(), before)


def test_the_space_keeps_norms_and_metrics(parts):
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = torch.randn(20, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    space, metric = parts.Pairs(), pvopt.Row(inputs.T @ inputs)
    inner = space.enter(weight, {})
    assert torch.allclose(space.leave(inner, {}, (6, 8)), weight)
    assert torch.allclose(inner.norm(), weight.norm())
    entered = space.enter_metric(metric, (6, 8), {})
    expected = (inputs @ weight.T).square().sum()
    assert torch.allclose(entered.squared_norm(inner).double(), expected)
    with pytest.raises(ValueError, match="does not divide the 7 columns"):
        pvopt.parse_scheme("pairs+powers:3").fit(torch.randn(2, 7))


@pytest.mark.parametrize("text", SCHEMES)
def test_the_start_works_in_every_space(parts, text):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 16, generator=generator)
    inputs = torch.randn(40, 16, generator=generator) * torch.logspace(-1, 1, 16)
    metric, scheme = pvopt.Row(inputs.T @ inputs), pvopt.parse_scheme(text)
    rep = STARTS.parse("tempered:1.0").start(weight, scheme, metric=metric)
    assert rep.scheme == scheme
    if text == "pairs+grid:2g8":
        plain = Fit().start(weight, scheme)
        errors = [metric.squared_norm(found.decode() - weight) for found in (rep, plain)]
        assert errors[0] < errors[1]


@pytest.mark.parametrize("text", SCHEMES)
def test_state_and_checkpoint(parts, text, tmp_path):
    from pvopt import formats

    model, weights = model_and_weights(text)
    formats.save(tmp_path / "c", model, weights)
    fresh, _ = model_and_weights(text, seed=1)
    loaded = formats.load(tmp_path / "c", fresh)
    assert loaded.weights["0.weight"].scheme == weights["0.weight"].scheme
    for (_, mine), (_, theirs) in zip(
        weights["0.weight"].tensors(), loaded.weights["0.weight"].tensors(), strict=True
    ):
        assert torch.equal(mine, theirs)
    optimizer = pvopt.ste(torch.optim.SGD(model.parameters(), lr=0.1), weights)
    other = pvopt.ste(torch.optim.SGD(fresh.parameters(), lr=0.1), loaded.weights)
    model(torch.ones(1, 16)).sum().backward()
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(fresh[0].weight, model[0].weight)


@pytest.mark.parametrize("text", SCHEMES)
def test_quantized_linear(parts, text):
    from pvopt.layers import QuantizedLinear, to_quantized

    model, weights = model_and_weights(text)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    expected = model(x)
    to_quantized(model, weights)
    assert isinstance(model[0], QuantizedLinear)
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_command_line(parts, tmp_path, capsys):
    pytest.importorskip("transformers", reason="the language-model extra is not installed")
    from pvopt.cli import main

    imported = ["--import", "my_parts"]
    start, tuned = str(tmp_path / "start"), str(tmp_path / "tuned")
    flags = ["--model", "tiny-llama", "--format", "pairs+powers:3"]
    assert main([*imported, "quantize", *flags, "--out", start]) == 0
    assert main([*imported, "info", "--checkpoint", start]) == 0
    calibrated = str(tmp_path / "calibrated")
    more = ["--calibration", "pydoc", "--calibration-tokens", "64", "--calibration-length", "32"]
    more += ["--start", "tempered:0.5", "--out", calibrated]
    assert main([*imported, "quantize", *flags, *more]) == 0
    assert "pairs+powers:3" in capsys.readouterr().out
    flags = ["--steps", "2", "--batch", "2", "--length", "16", "--eval-windows", "1"]
    flags += ["--subspace", "run:0.1", "--rounding", "lazy:0.5", "--base", "adamw"]
    assert main([*imported, "tune", "--checkpoint", start, *flags, "--out", tuned]) == 0
    prompt = ["--prompt", "To be", "--tokens", "2"]
    assert main([*imported, "generate", "--checkpoint", tuned, *prompt]) == 0
    with pytest.raises(SystemExit) as ended:
        main([*imported, "tune", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for form in ("powers:B", "pairs+FORM", "lazy:P", "run:F"):
        assert form in shown


def test_a_part_that_was_not_imported_is_refused(parts, tmp_path, monkeypatch):
    from pvopt import formats

    model, weights = model_and_weights("powers:3")
    formats.save(tmp_path / "c", model, weights)
    monkeypatch.delitem(pvopt.PARAMETRIZATIONS._classes, "Powers")
    with pytest.raises(formats.CheckpointError, match="unknown parametrization 'Powers'"):
        formats.load(tmp_path / "c", model)
