"""The benchmark's quick variant measures both parts and reports in the common language."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers", reason="the language-model extra is not installed")

from benchmarks.smoothness.__main__ import main
from benchmarks.smoothness.experiment import PLAN
from pvopt import AdditiveCodebooks, formats, quantize_
from pvopt.llm import load_model

SMALL = ["--quick", "--length", "16", "--path-steps", "2"]


def test_quick_run_reports_both_parts(tmp_path, capsys):
    file = tmp_path / "report.json"
    main([*SMALL, "--json", str(file), "--plots", str(tmp_path)])
    report = json.loads(file.read_text())
    assert report["benchmark"] == "smoothness"
    decay = [row for row in report["rows"] if row["experiment"] == "constants"]
    assert [row["fraction"] for row in decay] == [0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.85, 1.0]
    for estimator in ("power", "quotient"):
        assert 0 < decay[0][estimator] < 0.2 * decay[-1][estimator]
        assert decay[-1][f"{estimator}_over_full"] == 1
        for row in decay:
            (steps,) = row[f"{estimator}_by_draw_and_step"]
            assert len(steps) == 2
            assert max(steps) == row[estimator]
    rates = [row for row in report["rows"] if row["experiment"] == "code learning rate"]
    assert [row["base"] for row in rates] == [base for base, _ in PLAN]
    for row in rates:
        assert min(row["smoothness"], row["by_smoothness"], row["along_update"]) > 0
    assert len(report["checks"]) == 4
    assert report["checks"][0]["value"] <= 1  # the constants fall with nested subsets
    assert report["settings"]["constants_processor_s"] > 0
    assert (tmp_path / "decay.png").stat().st_size > 10_000
    assert "lr along update" in capsys.readouterr().out


def test_rates_may_start_from_a_checkpoint(tmp_path):
    language_model = load_model("tiny-llama")
    weights = quantize_(
        language_model.model, AdditiveCodebooks(num_codebooks=2, bits=3, in_group=8), seed=5
    )
    start = tmp_path / "start"
    formats.save(start, language_model.model, weights, tokenizer=language_model.tokenizer)
    report = main([*SMALL, "--only", "rates", "--start", str(start)])
    own = main([*SMALL, "--only", "rates"])
    assert {row["experiment"] for row in report.rows} == {"code learning rate"}
    assert report.rows[0]["smoothness"] != own.rows[0]["smoothness"]
