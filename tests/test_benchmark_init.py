"""The benchmark of starts: its quick variant runs every stage, keeps rows and reuses them."""

from __future__ import annotations

import json

import pytest
from stages import FirstAlone

pytest.importorskip("transformers", reason="the language-model extra is not installed")

from benchmarks.init import __main__ as init
from benchmarks.init.__main__ import main
from benchmarks.init.lineup import ROWS
from pvopt.llm import load_model
from pvopt.selection.schemes import select_schemes


def test_quick_run_keeps_every_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(init, "in_own_process", FirstAlone())
    file = tmp_path / "report.json"
    arguments = ["--quick", "--formats", "rtn-2,gptq-2", "--windows", "2", "--tuned-steps", "1"]
    arguments += ["--work", str(tmp_path / "work"), "--json", str(file)]
    assert main([*arguments, "--plots", str(tmp_path)]) == 0
    report = json.loads(file.read_text())
    assert report["benchmark"] == "init"
    rtn, gptq = report["rows"]
    assert (rtn["format"], gptq["format"]) == ("rtn-2", "gptq-2")
    assert gptq["layer_error"] < 0.8 * rtn["layer_error"]
    # 2 bits, and 16 bits of scale and of zero for 64 or 128 inputs
    assert 2.25 < gptq["bits_per_weight"] == rtn["bits_per_weight"] < 2.5
    assert gptq["tuned_ppl"] != gptq["ppl"]
    assert "tuned_ppl" not in rtn
    assert min(rtn["quantize_s"], rtn["peak_bytes"]) > 0
    assert (tmp_path / "init.png").stat().st_size > 10_000
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
