"""The benchmark's quick variant runs every stage and reports in the common language."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers", reason="the language-model extra is not installed")

from benchmarks.llm_tune import __main__ as llm_tune
from benchmarks.llm_tune.__main__ import main
from benchmarks.llm_tune.experiment import Settings


def test_quick_run_reports_rows_in_the_order_measured(tmp_path, monkeypatch, capsys):
    # Stages in their own processes are seen in the benchmark of the frontier.
    monkeypatch.setattr(llm_tune, "in_own_process", lambda stage, *given: stage(*given))
    file = tmp_path / "report.json"
    arguments = ["--quick", "--recipes", "ste,continuous_only", "--stop-after", "4"]
    assert main([*arguments, "--json", str(file), "--plots", str(tmp_path)]) == 0
    report = json.loads(file.read_text())
    assert report["benchmark"] == "llm_tune"
    assert [row["recipe"] for row in report["rows"]] == ["ste", "continuous_only"]
    ste, frozen = report["rows"]
    assert sum(ste["changed_by_step"]) > 0
    assert sum(frozen["changed_by_step"]) == 0
    start = report["settings"]["start"]
    for row in report["rows"]:
        assert row["ppl_0"] == start["start_ppl"]
        assert row["ppl_4"] != row["ppl_0"]
        assert row["loss"][-1] < row["loss"][0]
        assert min(row["step_s"], row["forward_backward_s"], row["peak_bytes"]) > 0
    assert (tmp_path / "llm_tune.png").stat().st_size > 10_000
    assert "continuous_only" in capsys.readouterr().out


def test_a_kept_start_belongs_to_its_settings():
    quick = Settings.quick()
    assert quick.start_key() == Settings.quick().start_key()
    assert quick.start_key() != Settings().start_key()


def test_unknown_recipes_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--quick", "--recipes", "magic"])
    assert "unknown recipe 'magic'" in capsys.readouterr().err
