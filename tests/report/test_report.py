from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="the language-model extra is not installed")
pytest.importorskip("altair", reason="the report extra is not installed")
pytest.importorskip("vl_convert", reason="the report extra is not installed")

import pvopt
from pvopt.cli import main
from pvopt.formats import CheckpointError, save
from pvopt.report import Sample, read_runs, write_report
from pvopt.report.charts import figures
from pvopt.report.layers import layer_cells
from pvopt.report.series import thinned

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TUNE = [
    *("tune", "--model", "tiny-llama", "--format", "grid:3g16", "--steps", "4", "--batch", "2"),
    *("--length", "16", "--eval-windows", "1", "--eval-every", "2", "--base", "adamw"),
    *("--code-lr", "0.3", "--text"),
]


def ran(capsys, *command, code=0):
    capsys.readouterr()
    assert main([str(part) for part in command]) == code
    shown = capsys.readouterr()
    if code == 2:
        assert len(shown.err.strip().splitlines()) == 1
    return shown.out if code == 0 else shown.err


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tuned run, one that has no checkpoint yet, and a checkpoint, calibrated."""
    base = tmp_path_factory.mktemp("runs")
    text = base / "text.txt"
    text.write_text("".join(f"so long number {n}, and thanks.\n\n" for n in range(60)))
    tuned, unfinished, quantized = base / "tuned", base / "<b>&unfinished", base / "quantized"
    assert main([*TUNE, str(text), "--out", str(tuned)]) == 0
    unfinished.mkdir()
    lines = (tuned / "metrics.jsonl").read_text().splitlines()
    (unfinished / "metrics.jsonl").write_text("\n".join(lines[:-4]) + '\n{"kind": "st')
    calibration = ["--calibration", str(text), "--calibration-tokens", "64"]
    flags = ["--model", "tiny-llama", "--format", "grid:2g16", *calibration]
    flags += ["--calibration-length", "32"]
    assert main(["quantize", *flags, "--out", str(quantized)]) == 0
    return tuned, unfinished, quantized


@pytest.fixture(scope="module")
def page(folders):
    file = folders[0].parent / "page" / "report.html"
    command = ["report", *map(str, folders), "--out", str(file)]
    assert main([*command, "--prompt", "</pre><b>long", "--tokens", "3"]) == 0
    assert main([*command, "--prompt", "</pre><b>long", "--tokens", "2"]) == 0  # ours: replaced
    return file


def specs_of(page):
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def rows_of(spec):
    """Return the rows of a chart's first layer."""
    data = spec.get("data") or spec["layer"][0]["data"]
    return data.get("values") or next(iter(spec["datasets"].values()))


def test_a_page_shows_what_was_recorded(folders, page):
    text = page.read_text("utf-8")
    assert len(text) < 2_000_000
    titles = [html.unescape(found) for found in re.findall("<figcaption><h3>(.*?)</h3>", text)]
    charts = dict(zip(titles, specs_of(text), strict=True))
    assert list(charts) == [
        "KL divergence in training",
        "Perplexity of the held-out text",
        "KL divergence on the held-out text",
        "Changed codes",
        "Learning rate of the codes",
        *(f"Changes of codes by layer: {name}" for name in ("tuned", "<b>&unfinished")),
        "Errors of layers' outputs",
        *(f"Errors of weights by layer: {name}" for name in ("tuned", "<b>&unfinished")),
        *(f"Bits per weight by layer: {name}" for name in ("tuned", "quantized")),
    ]
    lines = (folders[0] / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record for record in records if record["kind"] == "step"]
    for title, field, factor in (
        ("KL divergence in training", "loss", 1),
        ("Changed codes", "changed_fraction", 1),
        ("Learning rate of the codes", "lr_factor", 0.3),
    ):
        found = [row for row in rows_of(charts[title]) if row["run"] == "tuned"]
        assert [row["step"] for row in found] == [1, 2, 3, 4]
        expected = [factor * record[field] for record in steps]
        assert [row["value"] for row in found] == pytest.approx(expected)
    evaluated = [r["perplexity"] for r in records if r.get("model") == "student"]
    for name, known in (("tuned", evaluated), ("<b>&unfinished", evaluated[:-1])):
        rows = rows_of(charts["Perplexity of the held-out text"])
        assert [row["value"] for row in rows if row["run"] == name] == known
    groups = {n: g for r in records if r["kind"] == "codes" for n, g in r["groups"].items()}
    cells = rows_of(charts["Changes of codes by layer: tuned"])
    changed = sum(record["changed_groups"] for record in steps)
    kinds = {(cell["block"], cell["kind"]): cell["value"] for cell in cells}
    total = sum(
        kinds[name.split(".")[2], ".".join(name.split(".")[3:5])] * count
        for name, count in groups.items()
    )
    assert total == pytest.approx(changed)
    for shown in ("finished, 4 steps", "unfinished, 3 of 4", "a checkpoint", "grid:3g16", "5.000"):
        assert f"<td>{shown}" in text


def test_a_page_holds_nothing_that_runs_or_loads(page):
    text = page.read_text("utf-8")
    for hostile in ("<b>&unfinished", "</pre><b>long"):
        assert html.escape(hostile) in text
        assert hostile not in text
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?(https?:)?//", outside)
    assert "default-src 'none'" in text


def console(file, tmp_path):
    """Open a page in a browser; return the drawn page and what its console says."""
    assert CHROMIUM is not None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000"]
    done = subprocess.run(
        [
            *(CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"),
            *("--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout, re.findall(r":CONSOLE[:(].*", done.stderr)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_every_chart_without_a_complaint(page, tmp_path):
    drawn, complaints = console(page, tmp_path)
    count = len(specs_of(page.read_text("utf-8")))
    assert complaints == []
    assert f'data-charts="{count}"' in drawn
    charts = re.findall(r'<div class="chart.*?</figure>', drawn, re.S)
    assert len(charts) == count
    for chart in charts:
        assert re.search(r"<svg.*<path", chart, re.S)


def test_what_is_no_run_is_refused_in_a_sentence(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "metrics.jsonl").touch()
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "metrics.jsonl")
    shutil.copytree(folders[2], tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"1234")
    shutil.copytree(folders[2], tmp_path / "changed")
    manifest = tmp_path / "changed" / "pvopt.json"
    manifest.write_text(manifest.read_text().replace('"shape"', '"shope"', 1))
    (tmp_path / "notes.html").write_text("mine")
    export = ["export", "--checkpoint", folders[0], "--to", "dense", "--out", "dense"]
    ran(capsys, *export)
    for command, message in (
        (["missing"], "missing: must be a checkpoint folder, found nothing"),
        (["notes.html"], "notes.html: must be a checkpoint folder, found a file"),
        (["empty"], "empty: holds neither a run nor a checkpoint of pvopt"),
        (["dense"], "dense: holds neither a run nor a checkpoint of pvopt"),
        (["none"], "metrics.jsonl: holds no record of a run"),
        (["fifo"], "metrics.jsonl: is a FIFO"),
        (["cut"], "model.safetensors"),
        (["changed"], "pvopt.json: is damaged"),
        ([folders[0], folders[0] / ".." / "tuned"], "is named twice"),
        ([folders[0], "--out", "notes.html"], "notes.html is no page of pvopt report"),
        ([folders[0], "--out", "fifo/metrics.jsonl"], "metrics.jsonl is no page of pvopt report"),
        ([folders[0], "--out", "empty"], "empty is a folder"),
        ([folders[0], "--prompt", ""], "--prompt must hold at least one token"),
        ([folders[0], "--prompt", "x", "--tokens", "0"], "--tokens must be at least 1"),
    ):
        assert message in ran(capsys, "report", *command, code=2)
    assert (tmp_path / "notes.html").read_text() == "mine"
    assert not (tmp_path / "report.html").exists()


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    model = torch.nn.Linear(8, 4)
    weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
    runs = read_runs([save(tmp_path / "plain", model, weights)])
    write_report(runs, tmp_path / "real.html")
    before = (tmp_path / "real.html").read_text()
    (tmp_path / "page.html").symlink_to("real.html")
    write = Path.write_text

    def full_disk(file, text, **options):
        write(file, text[:9], **options)
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_report(runs, tmp_path / "page.html")
    monkeypatch.undo()
    assert (tmp_path / "real.html").read_text() == before
    write_report(runs, tmp_path / "page.html", samples=[Sample(model="m", prompt="p", text="new")])
    assert "new" in (tmp_path / "real.html").read_text()
    assert (tmp_path / "page.html").is_symlink()
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))


STEP = {
    "kind": "step",
    "step": 1,
    "loss": 1.0,
    "changed_groups": 3,
    "changed_fraction": 0.1,
    "lr_factor": 1.0,
    "forward_backward_s": 1.0,
    "optimizer_s": 1.0,
    "tokens_per_s": None,
}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "Expecting value"),
        ("\x00\xff", "is damaged"),
        ("[]", "it is no record"),
        ('{"step": 1}', "it is no record"),
        ("[" * 100_000, "is damaged"),
        ({"step": -1}, "step is -1"),
        ({"step": 2.5}, "step is 2.5"),
        ({"step": True}, "step is True"),
        ({"loss": "much"}, "loss is 'much'"),
        ({"loss": float("nan")}, "loss is nan"),
        ({"changed_groups": None}, "changed_groups is None"),
        ({"lr_factor": [1.0] * 99}, "lr_factor is"),
        ({"kind": "evaluation", "model": "somebody"}, "model is 'somebody'"),
        ({"kind": "evaluation", "model": "student", "perplexity": "5"}, "perplexity is '5'"),
        ({"kind": "codes", "changed": {"a": 1.5}, "groups": {"a": 3}}, "changed is"),
        ({"kind": "codes", "changed": {"a": 1}}, "groups is None"),
        ({"kind": "errors", "weights": {"a": "b"}}, "weights is"),
        ({"kind": "start", "settings": 3, "metadata": {}}, "settings is 3"),
    ],
)
def test_damaged_records_are_named(tmp_path, line, message):
    text = line if isinstance(line, str) else json.dumps({**STEP, **line})
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(json.dumps(STEP).encode() + b"\n" + text.encode("latin-1") + b"\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 is damaged") as found:
        read_runs([tmp_path])
    assert message in str(found.value)
    assert len(str(found.value)) < 400


@pytest.mark.parametrize(
    "more",
    [
        [],
        [{"kind": "later", "step": 1, "anything": []}],
        [{**STEP, "loss": None, "step": 2}],
        [{"kind": "start", "step": 0, "settings": {"code_lr": "x", "steps": "y"}, "metadata": {}}],
        [{"kind": "codes", "step": 1, "changed": {"0.weight": 3}, "groups": {"0.weight": 0}}],
        [{"kind": "codes", "step": 1, "changed": {"a": 3}, "groups": {}}],
        [{"kind": "errors", "step": 1, "weights": {"lm_head.weight": None, "a.0.b": 1.5}}],
        [{"kind": "evaluation", "step": 1, "model": "teacher", "perplexity": None}],
    ],
)
def test_runs_that_know_little_are_drawn(tmp_path, more):
    lines = [STEP, *more]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = read_runs([tmp_path])
    assert json.loads(json.dumps([figure.spec for figure in figures([run])], allow_nan=False))


def test_a_plain_module_has_a_page_and_names_tell_folders_apart(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 4))
    weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
    places = [save(tmp_path / part / "x", model, weights) for part in ("a", "b")]
    runs = read_runs(places)
    assert [run.name for run in runs] == ["a/x", "b/x"]
    text = write_report(runs, tmp_path / "page.html").read_text("utf-8")
    assert "Bits per weight by layer: a/x" in text
    assert "<h2>Settings</h2>" not in text


def test_many_steps_are_few_points_of_the_same_mean():
    records = [{"step": n, "loss": float(n % 7)} for n in range(1, 4802)]
    points = thinned(records, ["loss"])
    assert len(points) == 370  # 13 steps each
    assert points[0]["loss"] == pytest.approx(sum(n % 7 for n in range(1, 14)) / 13)
    assert points[-1]["step"] == 4801
    records[5]["loss"] = None
    assert [row["loss"] for row in thinned(records, ["loss"])].count(None) == 1


def test_experts_share_a_cell_by_their_sizes():
    names = [f"model.layers.10.mlp.experts.{n}.up_proj.weight" for n in range(2)]
    (cell,) = layer_cells({names[0]: 1.0, names[1]: 4.0}, {names[0]: 1, names[1]: 2})
    assert cell == {"block": "10", "kind": "mlp.experts.*.up_proj", "value": 3.0, "weights": 2}


def test_paths_are_as_they_were_given(folders):
    assert [run.folder for run in read_runs([str(folders[0])])] == [Path(folders[0])]
