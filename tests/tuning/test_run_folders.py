"""What may be written where: nothing is lost, no two runs write to one folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pvopt.cli import main
from pvopt.formats import CheckpointError
from pvopt.formats.locks import locked
from pvopt.tuning import Inputs, TuneSettings, resume_run, start_run

SMALL = {"batch": 2, "length": 16, "eval_windows": 1, "lr_schedule": "constant"}


def started(folder, **settings):
    inputs = Inputs(model="tiny-llama", format="grid:2g16")
    return start_run(inputs, TuneSettings(**{"steps": 1, **SMALL, **settings}), folder)


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint, a run, and a folder of something else, beside each other."""
    root = tmp_path_factory.mktemp("folders")
    quantize = ["quantize", "--model", "tiny-llama", "--format", "grid:2g16", "--out"]
    assert main([*quantize, str(root / "checkpoint-a")]) == 0
    started(root / "run").run()
    (root / "thesis").mkdir()
    (root / "thesis" / "chapter.tex").write_text("precious")
    (root / "file").write_text("precious")
    for noted, of in (("noted-run", "run"), ("noted", "checkpoint-a")):
        shutil.copytree(root / of, root / noted)
        (root / noted / "notes.txt").write_text("precious")
    (root / "served").mkdir()
    (root / "served" / "pvopt_export.json").write_text("{}")
    return root


QUANTIZE = ["quantize", "--model", "tiny-llama", "--format", "grid:2g16", "--out"]
EXPORT = ["export", "--checkpoint", "run"]
CALIBRATED = [*QUANTIZE[:-1], "--calibration", "pydoc"]
TUNE = ["tune", "--steps", "1", "--batch", "2", "--length", "16", "--eval-windows", "1"]


@pytest.mark.parametrize(
    ("command", "place", "message"),
    [
        (QUANTIZE, "checkpoint-a", "holds a checkpoint already"),
        (QUANTIZE, "run", "holds a run already"),
        (QUANTIZE, "thesis", "exists and holds something else"),
        ([*QUANTIZE[:-1], "--overwrite", "--out"], "thesis", "exists and holds something else"),
        ([*QUANTIZE[:-1], "--overwrite", "--out"], "file", "must be a folder"),
        ([*TUNE, "--model", "tiny-llama", "--out"], "checkpoint-a", "is a checkpoint"),
        ([*TUNE, "--model", "tiny-llama", "--overwrite", "--out"], "checkpoint-a", "is a checkp"),
        ([*TUNE, "--model", "tiny-llama", "--out"], "run", "holds a run already"),
        ([*TUNE, "--checkpoint", "checkpoint-a", "--out"], "checkpoint-a", "to start from"),
        ([*TUNE, "--checkpoint", "run", "--overwrite", "--out"], "run", "to start from"),
        ([*TUNE, "--checkpoint", "run", "--overwrite", "--out"], "run/checkpoint", "to start from"),
        ([*TUNE, "--model", "tiny-llama", "--out"], "file", "must be a folder"),
        ([*TUNE, "--model", "tiny-llama", "--out"], "file/run", "cannot be made, as"),
        (QUANTIZE, "file/new", "cannot be made, as"),
        ([*QUANTIZE[:-1], "--overwrite", "--out"], "noted-run", "holds more than a run (notes"),
        ([*QUANTIZE[:-1], "--overwrite", "--out"], "noted", "holds more than a checkpoint (notes"),
        ([*QUANTIZE[:-1], "--overwrite", "--out"], "served", "exists and holds something else"),
        (QUANTIZE, "served", "exists and holds something else"),
        ([*EXPORT, "--to", "dense", "--out"], "checkpoint-a", "exists and holds something else"),
        *[
            pytest.param(
                command,
                "/proc/pvopt",
                "cannot be made, as /proc is not writable",
                marks=pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc"),
            )
            for command in (
                QUANTIZE,
                [*TUNE, "--model", "tiny-llama", "--out"],
                [*EXPORT, "--to", "dense", "--out"],
                [*CALIBRATED, "--out", "new", "--work"],
                ["report", "run", "--out"],
            )
        ],
        ([*CALIBRATED, "--work", "w", "--out"], "w", "must be two folders side by side"),
        ([*CALIBRATED, "--work", "w", "--out"], "w/out", "must be two folders side by side"),
        ([*CALIBRATED, "--work", "out/../out/w", "--out"], "out", "must be two folders side by"),
    ],
)
def test_what_is_there_is_kept(command, place, message, folders, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    before = content(folders)

    def work(*args, **options):
        raise AssertionError("work was done before the folder was looked at")

    for worker in ("pvopt.llm.load_model", "pvopt.tuning.runs.load_model", "pvopt.formats.load"):
        monkeypatch.setattr(worker, work)
    assert main([*command, place]) == 2
    assert message in capsys.readouterr().err
    assert content(folders) == before


def test_overwriting_deletes_the_run_and_nothing_else(tmp_path, capsys):
    started(tmp_path / "x").run()
    assert main([*QUANTIZE[:-1], "--overwrite", "--out", str(tmp_path / "x")]) == 0
    assert "pvopt.json" in os.listdir(tmp_path / "x")
    assert not {"checkpoint", "metrics.jsonl"} & {*os.listdir(tmp_path / "x")}
    (tmp_path / "x" / "notes.txt").write_text("precious")
    assert main([*QUANTIZE[:-1], "--overwrite", "--out", str(tmp_path / "x")]) == 2
    assert "holds more than a checkpoint (notes.txt)" in capsys.readouterr().err
    assert (tmp_path / "x" / "notes.txt").read_text() == "precious"


def test_one_run_at_a_time(tmp_path):
    first, second = started(tmp_path), started(tmp_path)
    with locked(tmp_path / ".lock", "a run"), pytest.raises(CheckpointError, match="another run"):
        first.run()
    first.run()
    before = content(tmp_path)
    with pytest.raises(CheckpointError, match="another run has written here since"):
        second.run()
    with pytest.raises(ValueError, match="holds a run already"):
        started(tmp_path)
    assert content(tmp_path) == before


def test_one_resumed_run_at_a_time(tmp_path):
    started(tmp_path).run()
    first, second = resume_run(tmp_path, steps=2), resume_run(tmp_path, steps=2)
    first.run()
    before = content(tmp_path)
    with pytest.raises(CheckpointError, match="another run has written here since"):
        second.run()
    assert content(tmp_path) == before


def test_checkpoints_by_minutes(tmp_path, monkeypatch):
    trainer = started(tmp_path, steps=4, checkpoint_minutes=2.0)
    now, saved = iter(range(0, 6000, 61)), []
    monkeypatch.setattr("pvopt.tuning.trainer.time.monotonic", lambda: next(now))
    monkeypatch.setattr(type(trainer), "save", lambda self: saved.append(self.step))
    trainer.run()
    # 0 s; 61, 122 (and the save looks at 183); 244, 305: the second minute has passed each time
    assert saved == [2, 4]
