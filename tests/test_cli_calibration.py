"""``pvopt quantize --calibration``: a text in, a better start out; interrupted and resumed."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("transformers", reason="the language-model extra is not installed")

import pvopt
from pvopt.cli import main
from pvopt.commands import calibration
from pvopt.formats import read_metadata
from pvopt.starts import GPTQ, parse_start, usual_start
from pvopt.tuning import load_student


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    words = random.Random(0).choices(["to", "be", "or", "not", "that", "is", "\n\n"], k=2000)
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(" ".join(words))
    return str(file)


def flags(text, out, form="grid:2g16", *more):
    return [
        "quantize", "--model", "tiny-llama", "--format", form, "--calibration", text,
        "--calibration-tokens", "640", "--calibration-length", "64", *more, "--out", str(out),
    ]  # fmt: skip


def weights_of(folder):
    return {name: rep.decode() for name, rep in load_student(folder)[1].items()}


@pytest.mark.parametrize(("form", "start"), [("grid:2g16", "gptq"), ("vq:2g4", "aqlm")])
def test_the_usual_start_suits_the_format_and_helps(tmp_path, text, capsys, form, start):
    errors = {}
    for chosen, more in (("fit", ["--start", "fit"]), (start, [])):
        assert main(flags(text, tmp_path / chosen, form, *more)) == 0
        line = capsys.readouterr().out.splitlines()[0]
        assert line.startswith(f"{chosen} on 640 tokens: mean relative error of a layer's outputs ")
        errors[chosen] = float(line.split()[-1])
        found = read_metadata(tmp_path / chosen)["calibration"]
        assert found == {
            "text": text,
            "tokens": 640,
            "start": chosen,
            "end_loss": None,
            "asymmetric": None,
            "fine_tune": 0,
        }
    assert errors[start] < 0.8 * errors["fit"]


def test_an_interrupted_command_goes_on(tmp_path, text, monkeypatch):
    given = ["--fine-tune", "1", "--end-loss", "--asymmetric"]
    assert main(flags(text, tmp_path / "whole", "grid:2g16", *given)) == 0
    more = ["--fine-tune", "1", "--end-loss", "0.5", "--asymmetric", "0.5"]
    more += ["--work", str(tmp_path / "work")]

    def one_block(names):
        yield names[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "_blocks_bar", one_block)
    assert main(flags(text, tmp_path / "out", "grid:2g16", *more)) == 130
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    calls = []
    start = GPTQ.start
    monkeypatch.setattr(GPTQ, "start", lambda *a, **k: calls.append(1) or start(*a, **k))
    assert main(flags(text, tmp_path / "out", "grid:2g16", *more)) == 0
    assert len(calls) == 7  # of the second block alone
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "out")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_mistakes_are_explained(tmp_path, text, capsys):
    for arguments, message in (
        (["quantize", "--model", "tiny-llama", "--start", "gptq", "--out", "X"],
         "--start needs a text: --calibration TEXT"),
        (["quantize", "--model", "tiny-llama", "--work", "W", "--out", "X"],
         "--work needs a text"),
        (["quantize", "--model", "tiny-llama", "--calibration-tokens", "64", "--out", "X"],
         "--calibration-tokens needs a text"),
        (["quantize", "--model", "tiny-llama", "--end-loss", "0", "--out", "X"],
         "--end-loss needs a text"),
        (flags(text, "X", "grid:2g16", "--asymmetric", "2"),
         "--asymmetric must be at most 1, got 2"),
        (flags(text, "X", "grid:2g16", "--calibration-length", "641"),
         "--calibration-length must be in 1..640, got 641"),
        (flags(text, "X", "grid:2g16", "--calibration-tokens", "99999", "--calibration-length",
               "50000"), "--calibration-length must be at most 512"),
        (flags(text, "X", "grid:2g16", "--fine-tune", "-1"), "--fine-tune must be an int of"),
    ):  # fmt: skip
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_unknown_starts_are_refused(tmp_path, text, capsys):
    assert main(flags(text, tmp_path / "x", "grid:2g16", "--start", "magic")) == 2
    assert "--start 'magic' is unknown; the forms are fit" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("grid:2g64", "gptq"),
        ("ternary", "gptq"),
        ("vq:8g4", "aqlm"),
        ("sparse:50%", "iterative-obs"),
        ("2:4", "iterative-obs"),
        ("sparse:50%:tensor", "iterative-obs"),
    ],
)
def test_the_usual_start_can_start_its_format(text, start):
    scheme = pvopt.parse_scheme(text)
    assert usual_start(scheme) == parse_start(start)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(80, 64, generator=generator)
    weight = torch.randn(8, 64, generator=generator)
    metric = pvopt.Row(inputs.T @ inputs)
    rep = usual_start(scheme).start(weight, scheme, metric=metric)
    fitted = scheme.fit(weight)
    error, fit_error = (metric.squared_norm(r.decode() - weight) for r in (rep, fitted))
    assert error < fit_error
