"""What runs on a machine with a GPU runs here, too, with the smallest sizes."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers", reason="the language-model extra is not installed")

from benchmarks.gpu_here import __main__ as gpu_here
from benchmarks.gpu_here import step, tune
from benchmarks.gpu_here.__main__ import PARTS, Part, main


@pytest.mark.parametrize(("part", "rows"), [(step, 3), (tune, 1)])
def test_parts_run_on_a_cpu(tmp_path, part, rows):
    file = tmp_path / "part.json"
    assert part.main(["--quick", "--device", "cpu", "--json", str(file)]) == 0
    assert len(json.loads(file.read_text())["rows"]) == rows


def test_parts_that_fail_are_reported_and_stop_no_other(tmp_path, monkeypatch, capsys):
    def part(name: str, code: str, limit_s: int = 60) -> Part:
        return Part(name, (), ("-c", code), limit_s)

    endless = "print('begun', flush=True)\nwhile True: pass"
    monkeypatch.setattr(
        gpu_here,
        "PARTS",
        (
            part("bad", "raise SystemExit(3)"),
            part("slow", endless, 1),
            part("good", "open(r'{json}', 'w').write('[1]')"),
        ),
    )
    file = tmp_path / "report.json"
    assert main(["--dry-run", "--json", str(file)]) == 1
    rows = json.loads(file.read_text())["rows"]
    assert [(row["part"], row["status"]) for row in rows] == [
        ("bad", "3"), ("slow", "out of time"), ("good", "0"),
    ]  # fmt: skip
    assert "begun" in rows[1]["output"]
    assert rows[2]["report"] == [1]
    assert main(["--dry-run", "--only", "good"]) == 0
    capsys.readouterr()


def test_unknown_parts_and_machines_without_a_gpu(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(["--only", "magic"])
    assert "unknown part 'magic'; choose from tests, kernels, step, tune" in capsys.readouterr().err
    monkeypatch.setattr(gpu_here.torch.cuda, "is_available", lambda: False)
    assert main([]) == 1
    assert "no GPU" in capsys.readouterr().out
    assert sum(part.limit_s for part in PARTS) <= 480
