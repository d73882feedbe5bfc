"""The log for TensorBoard, read back by its own package."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers", reason="the language-model extra is not installed")
pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pvopt.cli import main
from pvopt.tuning import resume_run
from pvopt.tuning.run_folders import delete_run


def test_scalars_are_those_of_the_records_however_often_a_run_is_resumed(tmp_path):
    out = tmp_path / "run"
    flags = ["--format", "grid:3g16", "--batch", "2", "--length", "16", "--eval-windows", "1"]
    flags += ["--lr-schedule", "constant", "--lr", "0.01", "--warmup", "2"]
    log = ["--log-to", "tensorboard"]
    tune = ["tune", "--model", "tiny-llama", *flags, *log, "--out", str(out)]
    assert main([*tune, "--steps", "2"]) == 0
    resume_run(out, steps=3).run()  # without a log: the next one leaves a gap, repeats nothing
    assert main(["tune", "--resume", *log, "--steps", "4", "--out", str(out)]) == 0
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = {r["step"]: r for r in records if r["kind"] == "step" and r["step"] != 3}
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()

    def scalars(tag):
        return {event.step: pytest.approx(event.value) for event in events.Scalars(tag)}

    assert scalars("train/kl") == {n: step["loss"] for n, step in steps.items()}
    assert scalars("codes/changed_groups") == {n: s["changed_groups"] for n, s in steps.items()}
    assert scalars("lr/others") == {1: 0.005, 2: 0.01, 4: 0.01}
    student = {r["step"]: r for r in records if r.get("model") == "student" and r["step"] != 3}
    assert scalars("perplexity/student") == {n: r["perplexity"] for n, r in student.items()}
    assert list(scalars("perplexity/teacher")) == [0]
    delete_run(out)
    assert not (out / "tensorboard").exists()
