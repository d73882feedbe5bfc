"""The benchmark of starts: its quick variant runs every stage, keeps rows and reuses them."""

from __future__ import annotations

import json

import pytest
from stages import FirstAlone

pytest.importorskip("transformers", reason="the language-model extra is not installed")

from benchmarks.frontier import __main__ as frontier
from benchmarks.frontier.__main__ import main
from benchmarks.frontier.lineup import ROWS
from pvopt.llm import load_model
from pvopt.selection.schemes import select_schemes


def test_quick_run_keeps_every_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(frontier, "in_own_process", FirstAlone())
    file = tmp_path / "report.json"
    arguments = ["--quick", "--formats", "rtn-2,gptq-2", "--windows", "2", "--tuned-steps", "1"]
    arguments += ["--work", str(tmp_path / "work"), "--json", str(file)]
    assert main([*arguments, "--plots", str(tmp_path)]) == 0
    report = json.loads(file.read_text())
    assert report["benchmark"] == "frontier"
    rtn, gptq, tuned = report["rows"]
    shown = [(row["format"], row["method"], row["steps"]) for row in report["rows"]]
    assert shown == [("rtn-2", "fit", 0), ("gptq-2", "gptq", 0), ("gptq-2", "subspace_pv_ste", 1)]
    assert gptq["layer_error"] < 0.8 * rtn["layer_error"]
    # 2 bits, and 16 bits of scale and of zero for 64 or 128 inputs
    assert 2.25 < gptq["bits_per_weight"] == rtn["bits_per_weight"] < 2.5
    assert tuned["bits_per_weight"] == gptq["bits_per_weight"]
    assert tuned["ppl"] != gptq["ppl"]
    for row in report["rows"]:
        assert min(row["minutes"], row["peak_bytes"], row["kl"]) > 0 < row["top1"] <= 1
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
    assert "gptq-2" in capsys.readouterr().out

    assert main(arguments) == 0  # everything is there already: the same seconds
    assert json.loads(file.read_text())["rows"] == report["rows"]


def test_every_row_fits_the_tiny_model():
    model = load_model("tiny-llama").model
    for row in ROWS.values():
        assert len(select_schemes(model, row.build(model), ("lm_head",)).chosen) == 14
        row.parsed_start()


def test_unknown_formats_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--quick", "--formats", "magic"])
    assert "unknown format 'magic'" in capsys.readouterr().err
