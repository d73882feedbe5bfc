"""The quick row of ``benchmarks.plan``, all in this process."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers", reason="the language-model extra is not installed")

from benchmarks.plan import __main__, experiment
from pvopt.cli import main
from pvopt.planning import Machine


def test_quick(tmp_path, monkeypatch, capsys):
    rates = {"seconds_per_flop": 1e-9, "seconds_per_weight": 1e-9, "seconds_per_other": 1e-9}
    machine = Machine(**rates, spare_per_weight=8.0, program=500_000_000)
    monkeypatch.setattr(experiment, "measure_machine", lambda *_: machine)
    monkeypatch.setattr(__main__, "in_own_process", lambda function, *given: function(*given))

    def run(command, **_):
        return SimpleNamespace(returncode=main(command[3:]), stdout="VmHWM:\t 500000 kB\n")

    monkeypatch.setattr(experiment.subprocess, "run", run)
    file = tmp_path / "plan.json"
    report = __main__.main(["--quick", "--steps", "2", "--json", str(file)])
    (row,) = json.loads(file.read_text())["rows"]
    parts = [row[f"{name}_bytes"] for name in ("program", "teacher", "student", "gradients")]
    assert sum(parts) < row["planned_bytes"] < 1.1 * sum(parts)
    assert row["memory_ratio"] == row["planned_bytes"] / (500_000 << 10)
    assert row["measured_s"] > 0 < row["planned_s"]
    assert [check.holds for check in report.checks] == [abs(row["memory_ratio"] - 1) <= 0.1]
    assert "| tiny-llama | grid:2g16" in capsys.readouterr().out
