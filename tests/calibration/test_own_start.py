"""A start of a user's: it registers itself, and calibration and the command line know it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch

from pvopt import PARAMETRIZATIONS, FitOptions, Metric, Permutation, Row, Scheme, UniformGrid
from pvopt.calibration import calibrate_
from pvopt.core.registry import ShortForm
from pvopt.formats import CheckpointError, load_representations
from pvopt.starts import GPTQ, STARTS, Fit, Start, parse_start, usual_start

GRID = UniformGrid(bits=2, group_size=8)
TOKENS = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(0))
calls: list[float] = []


@pytest.fixture
def halfway():
    """Register a start between a fit and a weighted one, and a format that it suits."""

    @STARTS.register(
        ShortForm(
            form="halfway:SHARE",
            meaning="errors weighted by the diagonal, a share of it",
            example="halfway:0.5",
            pattern=r"halfway:([\d.]+)",
            settings=lambda share: dict(share=float(share)),
            write=lambda start: f"halfway:{start.share}",
        )
    )
    @dataclass(frozen=True, kw_only=True)
    class Halfway(Start):
        share: float = 0.5
        options: FitOptions = field(default_factory=FitOptions)

        needs_metric = Metric

        def _start(self, weight, parametrization, metric, generator):
            calls.append(self.share)
            hessian = metric.hessian.clone()
            hessian.diagonal().add_((1 - self.share) * hessian.diagonal().mean())
            own = Row(hessian).normalized()
            return parametrization.fit(
                weight, metric=own, options=self.options, generator=generator
            )

    @PARAMETRIZATIONS.register(
        ShortForm(
            form="mine:B",
            meaning="a grid",
            example="mine:2",
            pattern=r"mine:(\d)",
            settings=lambda bits: dict(bits=int(bits), group_size=8),
            write=lambda p: f"mine:{p.bits}",
        )
    )
    @dataclass(frozen=True, kw_only=True)
    class Mine(UniformGrid):
        usual_start = "halfway:0.25"

    calls.clear()
    yield Halfway
    STARTS.forget(Halfway)
    PARAMETRIZATIONS.forget(Mine)


def test_it_works_in_a_space_and_has_a_name(halfway):
    start = halfway(share=0.75, options=FitOptions(iterations=2))
    assert start.name == "halfway:0.75[options=FitOptions(iterations=2, beam_size=None)]"
    assert parse_start(start.name) == start
    assert STARTS.from_json(STARTS.to_json(start)) == start
    assert usual_start(PARAMETRIZATIONS.parse("mine:2")) == halfway(share=0.25)
    inputs = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="Halfway needs the metric of the layer's inputs"):
        start.start(weight, GRID)
    metric = Row(inputs.T @ inputs)
    scheme = Scheme(GRID, Permutation())
    rep = halfway(share=1.0).start(weight, scheme, metric=metric)
    expected = Fit(weighted=True).start(weight, scheme, metric=metric)
    torch.testing.assert_close(rep.decode(), expected.decode())


def test_calibration_takes_it_up_where_it_was_interrupted(halfway, tmp_path):
    llm = pytest.importorskip("pvopt.llm")
    model = llm.load_model("tiny-llama").model
    whole, resumed = copy.deepcopy(model), copy.deepcopy(model)
    start = {"*.mlp.*": halfway(share=0.5), "*": GPTQ()}
    expected = calibrate_(whole, TOKENS, GRID, start)

    def stop_after_first(names):
        yield names[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_(model, TOKENS, GRID, start, work=tmp_path, progress=stop_after_first)
    assert len(load_representations(tmp_path / "model.layers.0")) == 7
    calls.clear()
    result = calibrate_(resumed, TOKENS, GRID, start, work=tmp_path)
    assert calls == [0.5] * 3  # of the second block alone
    for name, rep in expected.weights.items():
        assert torch.equal(rep.decode(), result.weights[name].decode())
    with pytest.raises(CheckpointError, match=r"other settings \(start, weights\)"):
        calibrate_(resumed, TOKENS, GRID, start | {"*.mlp.*": halfway(share=0.6)}, work=tmp_path)


def test_a_start_that_is_not_registered_cannot_be_taken_up(halfway, tmp_path):
    llm = pytest.importorskip("pvopt.llm")
    STARTS.forget(halfway)
    model = llm.load_model("tiny-llama").model
    with pytest.raises(ValueError, match="Halfway is not registered as a start; known are"):
        calibrate_(model, TOKENS, GRID, halfway(), work=tmp_path)
    assert len(calibrate_(model, TOKENS, GRID, halfway()).weights) == 14


@pytest.mark.parametrize(
    ("form", "more", "share"),
    [("grid:2g8", ["--start", "halfway:0.75"], 0.75), ("perm+mine:2", [], 0.25)],
)
def test_the_command_line_knows_it(halfway, tmp_path, capsys, form, more, share):
    pytest.importorskip("transformers", reason="the language-model extra is not installed")
    from pvopt.cli import main

    text = tmp_path / "text.txt"
    text.write_text("to be or not to be that is the question\n" * 20)
    arguments = [
        "quantize", "--model", "tiny-llama", "--format", form, "--calibration", str(text),
        "--calibration-tokens", "128", "--calibration-length", "32", *more,
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"halfway:{share} on 128 tokens")
    assert calls == [share] * 14
    assert len(load_representations(tmp_path / "out")) == 14
    with pytest.raises(SystemExit) as ended:
        main(["quantize", "--help"])
    assert ended.value.code == 0
    assert "halfway:SHARE" in capsys.readouterr().out
