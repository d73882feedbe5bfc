from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from exports import drawn, in_dtype, tiny, wide_llama
from safetensors.torch import load_file

from pvopt import NestedGrid, NonFiniteGradientError, parse_scheme, quantize_, recipes
from pvopt.cli import main
from pvopt.formats import load, load_training_state, read_metadata, save, storage_report
from pvopt.llm import load_model, perplexity, split_text
from pvopt.tuning import (
    Inputs,
    TuneSettings,
    autocast_dtype,
    load_student,
    resume_run,
    start_run,
)
from pvopt.tuning.bases import BASES

# The codes of a 3-bit grid move often: 48 levels per 16 inputs, and a high learning rate.
SMALL = {
    "batch": 2,
    "length": 24,
    "eval_windows": 3,
    "eval_length": 32,
    "code_lr": 0.3,
    "base": "adamw",
    "lr_schedule": "constant",
}


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    words = random.Random(0).choices(["to", "be", "or", "not", "that", "is", "\n\n"], k=3000)
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(" ".join(words))
    return str(file)


@pytest.fixture
def threads():
    """Return ``torch.set_num_threads``, which is undone when the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def processor(monkeypatch):
    """Return a function that makes `auto` see a processor with bfloat16 units, or without."""

    def choose(native):
        seen = {"avx512_bf16": native}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: seen, raising=False)
        return "bfloat16" if native else "float32"

    return choose


# On two busy cores two threads wait for each other: the short tests take all four pairs.
ALL_PAIRS = [("float32", 1), ("float32", 2), ("bfloat16", 1), ("bfloat16", 2)]


def tune_flags(text, out, **settings):
    flags = ["tune", "--model", "tiny-llama", "--format", "grid:3g16", "--text", text]
    for name, value in {**SMALL, **settings}.items():
        flags += ["--" + name.replace("_", "-"), str(value)]
    return [*flags, "--out", str(out)]


def start(text, out, **settings):
    inputs = Inputs(model="tiny-llama", format="grid:3g16", text=text)
    return start_run(inputs, TuneSettings(**{**SMALL, **settings}), out)


def last_loss(trainer):
    return [r["loss"] for r in trainer.records.read() if r["kind"] == "step"][-1]


def kinds_of(run):
    """Count the records of each kind."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return Counter(json.loads(line)["kind"] for line in lines)


def flat(value, path=""):
    """Name every leaf of nested dictionaries and lists."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in items for k, v in flat(part, f"{path}/{key}").items()}
    return {path: value}


def assert_same_runs(one, other, *, settings=True):
    """Weights, codes, values, moments, latents and metrics agree bit for bit."""
    first, second = (load_file(run / "checkpoint" / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    first, second = (flat(load_training_state(run / "checkpoint")) for run in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == second[name].dtype, name
            assert torch.equal(value, second[name]), name
        elif settings or not name.startswith("/settings"):
            assert value == second[name], name
    metrics, changes = [], []
    for run in (one, other):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        changed = Counter()
        for line in lines:  # one whenever the run was saved
            changed.update(line.get("changed", {}))
        changes.append(changed)
        lines = [line for line in lines if line["kind"] not in ("start", "codes")]
        kept = ("kind", "step", "model", "loss", "changed_groups", "lr_factor", "perplexity")
        metrics.append([{key: line.get(key) for key in kept} for line in lines])
    assert metrics[0] == metrics[1]
    assert changes[0] == changes[1]
    assert sum(changes[0].values()) == sum(line["changed_groups"] or 0 for line in metrics[0])


@pytest.mark.parametrize(("dtype", "count"), ALL_PAIRS)
def test_quantize_info_eval(tmp_path, text, capsys, threads, dtype, count):
    threads(count)
    out = tmp_path / "q"
    assert main(["quantize", "--model", "tiny-llama", "--format", "2x4g8", "--out", str(out)]) == 0
    report = storage_report(out)
    share = "quantized 14 weights, 100% of the matrices, to"
    assert f"{share} {report.bits_per_weight_16:.3f} bits" in capsys.readouterr().out

    assert main(["info", "--checkpoint", str(out)]) == 0
    shown = capsys.readouterr().out
    # q_proj: 64 x 64, 2 codes of 4 bits per 8 weights, 2 codebooks of 16 x 8 and 64 scales
    bits, bits_16 = 1 + 32 * (256 + 64) / 4096, 1 + 16 * (256 + 64) / 4096
    line = next(line for line in shown.splitlines() if "layers.0.self_attn.q_proj" in line)
    assert line.split()[1:] == ["64x64", "2x4g8", "512", "1,280", f"{bits:.3f}", f"{bits_16:.3f}"]
    assert f"{os.path.getsize(out / 'model.safetensors'):,} bytes" in shown

    flags = [
        "--text",
        text,
        "--context",
        "32",
        "--windows",
        "4",
        "--dtype",
        dtype,
        "--part",
        "held-out",
    ]
    assert main(["eval", "--checkpoint", str(out), *flags]) == 0
    shown = capsys.readouterr().out
    student, weights, metadata = load_student(out)
    assert metadata["model"] == "tiny-llama"
    assert len(weights) == 14
    with open(text) as file:
        tokens = student.encode(split_text(file.read())[1])
    expected = perplexity(
        student.model,
        tokens,
        context_length=32,
        max_windows=4,
        autocast_dtype=autocast_dtype(dtype),
    )
    assert f"perplexity {expected.perplexity:.5g} " in shown
    assert f"held-out text: 4 windows of 32 tokens, 124 predictions, {dtype}\n" in shown

    assert main(["eval", "--model", "tiny-llama", "--part", "train", *flags]) == 0
    assert f"perplexity {expected.perplexity:.5g} " not in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "count"), ALL_PAIRS)
def test_tune_writes_metrics_and_a_checkpoint(tmp_path, text, capsys, threads, dtype, count):
    threads(count)
    out = tmp_path / "run"
    flags = tune_flags(text, out, steps=3, eval_every=2, micro_batch=1, seed=4, beam=2, dtype=dtype)
    flags[flags.index("--format") + 1] = "1x6g2"
    assert main(flags) == 0
    shown = capsys.readouterr()
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"], r.get("model")) for r in records] == [
        ("start", 0, None),
        ("evaluation", 0, "teacher"),
        ("errors", 0, None),
        ("evaluation", 0, "student"),
        ("step", 1, None),
        ("step", 2, None),
        ("codes", 2, None),
        ("errors", 2, None),
        ("evaluation", 2, "student"),
        ("step", 3, None),
        ("codes", 3, None),
        ("errors", 3, None),
        ("evaluation", 3, "student"),
    ]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    assert {(r["context_length"], r["dtype"]) for r in evaluations} == {(32, dtype)}
    steps = [record for record in records if record["kind"] == "step"]
    assert steps[-1]["changed_groups"] > 0
    assert sum(records[-3]["changed"].values()) == steps[-1]["changed_groups"]
    compared = [record for record in evaluations if "divergence" in record]
    assert [(r["step"], r["model"]) for r in compared] == [(0, "student"), (3, "student")]
    assert f"{records[-1]['perplexity']:.5g}" in shown.out
    assert f"32 tokens of context, up to 3 windows, {dtype}\n" in shown.out
    assert "tokens/s" in shown.err
    assert "codes changed" in shown.err
    student, _, metadata = load_student(out)
    assert metadata["step"] == 3
    assert metadata["inputs"]["text"] == text
    assert [e["perplexity"] for e in metadata["evaluations"]] == [
        evaluations[place]["perplexity"] for place in (0, 1, -1)
    ]
    assert metadata["commands"] == [shlex.join(["python", "-m", "pvopt", *flags])]
    assert metadata["settings"]["beam"] == 2
    assert resume_run(out).optimizer.search.beam_size == 2
    assert load_training_state(out / "checkpoint")["step"] == 3
    # The held-out part is not trained on: the reported perplexity is that of the end of the text.
    with open(text) as file:
        tokens = student.encode(split_text(file.read())[1])
    again = perplexity(
        student.model,
        tokens,
        context_length=32,
        max_windows=3,
        autocast_dtype=autocast_dtype(dtype),
    )
    assert again.nll_per_token == records[-1]["nll_per_token"]  # the same arithmetic


def evaluate(capsys, checkpoint, text, *more):
    """Return the nats per token that ``eval`` prints, and the line on how they were measured."""
    flags = ["--text", text, "--context", "32", "--windows", "3", "--part", "held-out", *more]
    capsys.readouterr()
    assert main(["eval", "--checkpoint", str(checkpoint), *flags]) == 0
    result, how, *_ = capsys.readouterr().out.splitlines()
    return float(result.split("(")[1].split()[0]), how


@pytest.mark.parametrize(("native", "count"), [(False, 2), (True, 1)])
def test_another_processor_computes_as_the_one_that_started(
    tmp_path, text, capsys, threads, processor, native, count
):
    threads(count)
    whole, parts, onward = tmp_path / "whole", tmp_path / "parts", tmp_path / "onward"
    dtype = processor(native)
    assert main(tune_flags(text, whole, steps=4)) == 0
    assert main(tune_flags(text, parts, steps=2, eval_every=2)) == 0
    other = processor(not native)
    logged = resume_run(parts).records.read()[-1]
    assert (logged["model"], logged["dtype"]) == ("student", dtype)
    found, how = evaluate(capsys, parts, text)
    assert f"{logged['nll_per_token']:.5f}" == f"{found:.5f}"
    assert how.endswith(f"{dtype}, as it was tuned")
    assert evaluate(capsys, parts, text, "--dtype", other)[1].endswith(f"predictions, {other}")
    # A run that starts from the checkpoint begins where the other one ended.
    flags = tune_flags(text, onward, steps=1)
    flags[1:5] = ["--checkpoint", str(parts)]
    assert main(flags) == 0
    lines = [json.loads(line) for line in (onward / "metrics.jsonl").read_text().splitlines()]
    assert [line["dtype"] for line in lines if "dtype" in line] == [dtype] * 3
    first = next(line for line in lines if line.get("model") == "student")
    assert first["nll_per_token"] == logged["nll_per_token"]
    # Also when it is resumed.
    assert main(["tune", "--resume", "--out", str(parts), "--steps", "4", "--eval-every", "0"]) == 0
    lines = (parts / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if not re.search('"(evaluation|errors)", "step": 2', line)]
    (parts / "metrics.jsonl").write_text("\n".join(kept))
    assert_same_runs(whole, parts, settings=False)


def test_threads_change_a_perplexity_by_rounding_alone(tmp_path, text, threads):
    trainer = start(text, tmp_path, steps=1)
    trainer.run()
    student = load_student(tmp_path)[0].model
    for autocast in (None, torch.bfloat16):
        found = []
        for count in (1, 2, 3):
            threads(count)
            options = {"context_length": 128, "max_windows": 4, "autocast_dtype": autocast}
            found.append(perplexity(student, trainer.eval_tokens, **options).nll_per_token)
        # The same sums in another order, and every product rounded to the dtype.
        unit = torch.finfo(autocast or torch.float32).eps
        assert found == pytest.approx([found[0]] * 3, rel=8 * unit)


@pytest.mark.parametrize(("dtype", "count"), [("float32", 2), ("bfloat16", 1)])
@pytest.mark.parametrize(
    "settings",
    [
        {"recipe": "subspace_pv_ste", "lr_schedule": "constant"},
        {"recipe": "stochastic_rounding", "base": "sgd", "code_lr": 30.0, "trust_ratio": 0.1},
    ],
    ids=["subspace_pv_ste", "stochastic_rounding"],
)
def test_two_steps_and_two_resumed_equal_four(tmp_path, text, threads, settings, dtype, count):
    threads(count)
    settings = {**settings, "dtype": dtype}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(tune_flags(text, whole, steps=4, eval_every=2, **settings)) == 0
    assert main(tune_flags(text, parts, steps=2, eval_every=2, **settings)) == 0
    middle = load_file(parts / "checkpoint" / "model.safetensors")
    assert main(["tune", "--resume", "--out", str(parts), "--steps", "4"]) == 0
    assert_same_runs(whole, parts)
    end = load_file(parts / "checkpoint" / "model.safetensors")
    assert any(not torch.equal(end[n], middle[n]) for n in end if ".codes." in n)


@pytest.mark.parametrize("base", ["adamw", "adafactor"])
def test_a_stopped_run_with_a_schedule_goes_on_exactly(tmp_path, text, base):
    settings = {"steps": 5, "lr_schedule": "cosine", "warmup": 2, "micro_batch": 1, "eval_every": 1}
    settings["base"] = base
    start(text, tmp_path / "whole", **settings).run()
    trainer = start(text, tmp_path / "parts", **settings)
    trainer.run(stop=lambda: trainer.step == 1)
    for target in (3, 9):
        trainer = resume_run(tmp_path / "parts")
        assert trainer.step == {3: 1, 9: 3}[target]
        trainer.run(stop=lambda: trainer.step == target)  # noqa: B023
    assert trainer.step == 5
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_steps_after_the_last_checkpoint_are_repeated(tmp_path, text):
    settings = {"steps": 4, "checkpoint_every": 2}
    start(text, tmp_path / "whole", **settings).run()
    trainer = start(text, tmp_path / "killed", **settings)

    def kill(step, record):
        if step == 3:
            raise SystemError("power cut")

    with pytest.raises(SystemError):
        trainer.run(on_step=kill)
    with open(trainer.records.path, "a") as file:
        file.write('{"kind": "st')
    resume_run(tmp_path / "killed").run()
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(("half", "native"), [("bfloat16", False), ("float16", True)])
def test_models_in_half_precision(tmp_path, text, capsys, processor, native, half):
    processor(native)
    quantized = tmp_path / "q"
    flags = ["--model", "tiny-llama", "--format", "grid:3g16", "--dtype", half]
    assert main(["quantize", *flags, "--out", str(quantized)]) == 0
    for name, steps in (("whole", (4,)), ("parts", (2, 4))):
        flags = tune_flags(text, tmp_path / name, steps=steps[0], eval_every=2)
        flags[1:5] = ["--checkpoint", str(quantized)]
        assert main(flags) == 0
        for more in steps[1:]:
            assert main(["tune", "--resume", "--out", flags[-1], "--steps", str(more)]) == 0
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")
    student, _, metadata = load_student(tmp_path / "parts")
    assert {p.dtype for p in student.model.parameters()} == {getattr(torch, half)}
    assert metadata["inputs"]["model"] == "tiny-llama"
    assert metadata["settings"]["dtype"] == half
    logged = resume_run(tmp_path / "parts").records.read()[-1]["nll_per_token"]
    found, how = evaluate(capsys, tmp_path / "parts", text)
    assert f"{logged:.5f}" == f"{found:.5f}"
    assert how.endswith(f"{half}, as it was tuned")
    widened, how = evaluate(capsys, tmp_path / "parts", text, "--dtype", "float32")
    assert widened == pytest.approx(logged, rel=torch.finfo(getattr(torch, half)).eps)
    assert how.endswith("predictions, float32")
    flags = tune_flags(text, tmp_path / "wide", steps=1, dtype="float32")
    flags[1:5] = ["--checkpoint", str(quantized)]
    assert main(flags) == 2
    message = f"--dtype must be auto, bfloat16 or float16 to tune a model in torch.{half}"
    assert message in capsys.readouterr().err


def test_micro_batches_add_up_to_the_batch(tmp_path, text):
    losses = []
    for micro in (1, 2, 4):
        trainer = start(text, tmp_path / str(micro), steps=1, batch=4, micro_batch=micro)
        trainer.run()
        losses.append(last_loss(trainer))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_losses_differ_and_the_temperature_matters(tmp_path, text):
    found = []
    for number, settings in enumerate(({}, {"loss": "ce"}, {"temperature": 3.0})):
        trainer = start(text, tmp_path / str(number), steps=1, **settings)
        trainer.run()
        found.append(last_loss(trainer))
    assert len({round(loss, 4) for loss in found}) == 3


@pytest.mark.parametrize("recipe", recipes.__all__)
def test_every_recipe_runs(tmp_path, text, recipe):
    trainer = start(text, tmp_path, steps=1, recipe=recipe)
    before = {name: rep.clone() for name, rep in trainer.weights.items()}
    trainer.run()
    moved = [
        not torch.equal(before[n].group_codes(), rep.group_codes())
        for n, rep in trainer.weights.items()
    ]
    assert any(moved) == (recipe != "continuous_only")
    scales = [
        torch.equal(before[n].values["scales"], r.values["scales"])
        for n, r in trainer.weights.items()
    ]
    assert not any(scales)


@pytest.mark.parametrize("base", BASES)
def test_every_base_optimizer_moves_everything(tmp_path, text, base):
    trainer = start(text, tmp_path, steps=1, base=base, lr=0.01)
    before = {n: p.detach().clone() for n, p in trainer.student.model.named_parameters()}
    trainer.run()
    for name, parameter in trainer.student.model.named_parameters():
        assert not torch.equal(before[name], parameter), name


def test_learning_rates_are_what_the_settings_say(tmp_path, text):
    trainer = start(text, tmp_path, values_lr=0.004, code_lr=0.02, lr=0.001, subspace="greedy:0.05")
    *quantized, others = trainer.optimizer.param_groups
    for group in quantized:
        (weight,) = group["params"]
        assert group["lr"] == pytest.approx(0.02 * float(weight.detach().square().mean().sqrt()))
        assert group["lr"] * group["values_lr_ratio"] == pytest.approx(0.004)
        assert group["fraction"] == 0.05
    assert others["lr"] == 0.001
    trainer = start(text, tmp_path, relative_code_lr=False, lr=0.0)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {SMALL["code_lr"]}
    assert not trainer.student.model.get_input_embeddings().weight.requires_grad


def test_divergence_is_an_error_and_the_last_checkpoint_stays(tmp_path, text, capsys):
    assert main(tune_flags(text, tmp_path / "a", steps=1)) == 0
    trainer = resume_run(tmp_path / "a", steps=3)
    with torch.no_grad():
        trainer.student.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(NonFiniteGradientError):
        trainer.run()
    assert read_metadata(tmp_path / "a" / "checkpoint")["step"] == 1
    assert resume_run(tmp_path / "a").step == 1


def test_a_run_is_not_overwritten_unless_asked(tmp_path, text, capsys):
    flags = tune_flags(text, tmp_path, steps=1)
    assert main(flags) == 0
    assert main(flags) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main([*flags, "--overwrite"]) == 0
    assert kinds_of(tmp_path) == {"evaluation": 3, "step": 1, "errors": 2, "codes": 1, "start": 1}


def test_a_resumed_run_keeps_its_settings(tmp_path, text, capsys):
    assert main(tune_flags(text, tmp_path, steps=1)) == 0
    resume = ["tune", "--resume", "--out", str(tmp_path)]
    assert main([*resume, "--lr", "1", "--text", "pydoc"]) == 2
    assert "--lr, --text: a resumed run keeps its settings" in capsys.readouterr().err
    assert main(resume) == 0  # nothing is left to do
    assert kinds_of(tmp_path) == {"evaluation": 3, "step": 1, "errors": 2, "codes": 1, "start": 2}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["quantize", "--model", "tiny-llama", "--format", "7b", "--out", "X"],
            "--format '7b' is un",
        ),
        (["quantize", "--model", "tiny-llama", "--format", "2x99g8", "--out", "X"], "bits must be"),
        (
            ["quantize", "--model", "tiny-llama", "--format", "vq:4g7", "--out", "X"],
            "q_proj.weight",
        ),
        (["quantize", "--model", "no/../model", "--out", "X"], "--model 'no/../model' is neither"),
        (["eval", "--model", "tiny-llama", "--text", "/nowhere"], "--text '/nowhere' must be"),
        (["eval", "--checkpoint", "/nowhere"], "must be a checkpoint folder, found nothing"),
        (["eval", "--model", "tiny-llama", "--context", "1"], "--context must be in 2.."),
        (["info", "--checkpoint", "/"], "it has no config.json"),
        (["tune", "--out", "X"], "one of --model, --checkpoint and --resume"),
        (["tune", "--resume", "--out", "X"], "checkpoint folder"),
        (
            ["tune", "--model", "tiny-llama", "--out", "X", "--batch", "3", "--micro-batch", "2"],
            "--micro-batch must divide --batch=3, got 2",
        ),
        (
            ["tune", "--model", "tiny-llama", "--out", "X", "--lr", "-1"],
            "--lr must be finite and not neg",
        ),
        (
            ["tune", "--model", "tiny-llama", "--out", "X", "--length", "99999999"],
            "most 512, the pos",
        ),
        (
            ["tune", "--model", "tiny-llama", "--out", "X", "--subspace", "greedy:2"],
            "fraction must be in (0, 1], got 2.0",
        ),
        (
            ["tune", "--model", "tiny-llama", "--out", "X", "--subspace", "gready"],
            "--subspace 'gready' is un",
        ),
        (
            ["tune", "--model", "tiny-llama", "--format", "grid:4", "--out", "X", "--beam", "3"],
            "--beam does not fit UniformGrid",
        ),
        (["tune", "--out", "X", "--recipe", "best"], "argument --recipe: invalid choice: 'best'"),
        (["tune", "--out", "X", "--steps", "many"], "argument --steps: invalid int value"),
        (["convert"], "invalid choice"),
        (["--import", "no_such_parts", "info"], "argument --import: No module named"),
        ([], "required"),
    ],
)
def test_errors_of_the_user_are_one_line_and_code_2(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(flags)
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    errors = capsys.readouterr().err
    assert "quantize:" not in errors or "q_proj" in message  # found before the work begins
    lines = [part for part in errors.splitlines() if part and "window" not in part]
    assert len(lines) == 1
    assert message in lines[0]
    assert lines[0].startswith("pvopt")
    assert not (tmp_path / "X" / "metrics.jsonl").exists()


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="unknown"):
        main(["--debug", "quantize", "--model", "tiny-llama", "--format", "7b", "--out", "X"])


def test_the_library_does_not_print(tmp_path, text, capfd):
    start(text, tmp_path, steps=2, checkpoint_every=1).run()
    resume_run(tmp_path, steps=3).run()
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_is_exported_tuned_there_and_exported_again(tmp_path, capsys):
    start, served, run = tmp_path / "start", tmp_path / "served", tmp_path / "run"
    tiny = ["--model", "tiny-llama"]
    assert main(["quantize", *tiny, "--format", "grid:2g16s", "--out", str(start)]) == 0
    export = ["export", "--checkpoint", str(start), "--to", "compressed-tensors", "--out"]
    assert main([*export, str(served), "--dtype", "float16"]) == 0
    output = capsys.readouterr()
    assert f"vllm serve {served}" in output.out
    assert "values were rounded to torch.float16" in output.err
    tune = ["tune", "--checkpoint", str(served), "--steps", "1", "--out", str(run)]
    assert main(tune) == 2
    assert "does not name its original; give it by --model" in capsys.readouterr().err
    small = ["--batch", "1", "--length", "16", "--eval-windows", "1"]
    assert main([*tune, *tiny, *small]) == 0
    tuned = load_student(run)[1]  # squares of gradients vanish in half precision, and steps
    assert {rep.dtype for rep in tuned.values()} == {torch.float32}
    assert all(bool(rep.decode().isfinite().all()) for rep in tuned.values())
    again = ["export", "--checkpoint", str(run), "--to", "compressed-tensors", "--out", str(served)]
    assert main([*again, "--dtype", "float16"]) == 0
    assert "float16" in capsys.readouterr().out
    assert main(["eval", "--model", str(served)]) == 2
    message = "is quantized already (compressed-tensors): name it by --checkpoint"
    assert message in capsys.readouterr().err
    assert main(["info", "--checkpoint", str(served)]) == 2
    assert "is in the format compressed-tensors" in capsys.readouterr().err
    assert main([*export, str(start)]) == 2
    assert "it is not replaced" in capsys.readouterr().err


def test_a_gguf_file_is_tuned_in_its_own_format(tmp_path, text, capsys):
    start, served, run = tmp_path / "start", tmp_path / "served", tmp_path / "run"
    tiny = ["--model", "tiny-llama"]
    assert main(["quantize", *tiny, "--format", "affine:4g32", "--out", str(start)]) == 0
    export = ["export", "--to", "gguf", "--out", str(served), "--checkpoint"]
    assert main([*export, str(start)]) == 2
    assert "no float16 numbers" in capsys.readouterr().err
    assert main([*export, str(start), "--dtype", "float16"]) == 0
    output = capsys.readouterr()
    assert f"next: llama-server --model {served}/model.gguf" in output.out
    assert "values were rounded to torch.float16" in output.err
    file = str(served / "model.gguf")
    small = ["--text", text, "--batch", "1", "--length", "16", "--eval-windows", "1"]
    tune = ["tune", *small, "--steps", "1", "--checkpoint"]
    assert main([*tune, file, *tiny, "--out", str(run)]) == 0
    assert main([*export, str(run), "--dtype", "float16"]) == 0
    with_type = [*export, str(run), "--dtype", "float16", "--blocks"]
    assert main([*with_type, "Q4_0"]) == 2
    assert "no block type of Q4_0 has its levels" in capsys.readouterr().err
    assert all("AffineGrid" in str(rep) for rep in load(file).weights.values())
    # As the original of a run, and as a model to quantize.
    capsys.readouterr()
    again = ["quantize", "--model", file, "--format", "grid:2s", "--out", str(tmp_path / "again")]
    assert main([*again, "--dry-run"]) == 0
    assert main(again) == 0
    assert read_metadata(tmp_path / "again")["model"] == file
    assert main([*tune, str(tmp_path / "again"), "--out", str(tmp_path / "other")]) == 0


PUBLISHED = {
    "aqlm": (lambda: tiny({"*q_proj": parse_scheme("2x4g8")}), "transformers serve"),
    "gptq": (lambda: tiny({"*q_proj": parse_scheme("grid:2g16z")}), "transformers serve"),
    "exl3": (lambda: drawn({"0.self_attn.q_proj": (1, "mul1")}), "--model-name served"),
    "gguf": (lambda: nested(), "llama-server"),  # Q2_K
}


def nested():
    model = wide_llama()
    weights = quantize_(model, {"*self_attn.[qk]_proj": NestedGrid()})
    return model, in_dtype(in_dtype(weights, torch.float16), torch.float32)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_tuned_in_their_own_format(tmp_path, text, capsys, name):
    """A folder that says nothing of us is tuned, written back, and read as what was tuned."""
    make, loading = PUBLISHED[name]
    theirs, run, served = tmp_path / "theirs", tmp_path / "run", tmp_path / "served"
    model, weights = make()
    tokenizer, original = load_model("tiny-llama").tokenizer, "tiny-llama"
    if name == "gguf":
        original = str(tmp_path / "original")
        wide_llama().save_pretrained(original)
        tokenizer.save_pretrained(original)
    save(theirs, model, weights, format=name, tokenizer=tokenizer)
    (theirs / "pvopt_export.json").unlink()
    settings = ["--steps", "1", "--batch", "1", "--length", "16", "--eval-windows", "1"]
    settings += ["--dtype", "float32", "--code-lr", "1.0", "--subspace", "greedy:0.05"]
    inputs = ["--checkpoint", str(theirs), "--model", original, "--text", text]
    assert main(["tune", *inputs, *settings, "--out", str(run)]) == 0
    export = ["export", "--checkpoint", str(run), "--to", name, "--out", str(served)]
    dtype = ["--dtype", "float16"] if name in ("exl3", "gguf") else []
    capsys.readouterr()
    assert main([*export, *dtype]) == 0
    assert loading in capsys.readouterr().out.splitlines()[-1]
    tuned, back = load(run / "checkpoint"), load(served)
    moved = 0
    for key, rep in tuned.weights.items():
        found = back.weights[key]
        assert found.scheme == weights[key].scheme == rep.scheme
        for stream, codes in rep.codes.items():
            assert torch.equal(found.codes[stream], codes)
            moved += int((codes != weights[key].codes[stream]).sum())
        rtol, atol = (1e-2, 1e-4) if dtype else (0.0, 0.0)
        torch.testing.assert_close(found.decode(), rep.decode(), rtol=rtol, atol=atol)
        assert not torch.equal(rep.decode(), weights[key].decode())
    assert moved


def test_an_export_has_the_dtype_of_the_model(tmp_path, capsys):
    """Of a model in half precision scales are tuned in single precision, and rounded at the end."""
    model, weights = tiny("grid:2g16s", torch.bfloat16)
    start = save(tmp_path / "start", model, in_dtype(weights, torch.float32))
    export = ["export", "--checkpoint", str(start), "--to", "compressed-tensors", "--out"]
    for flags, dtype in (([], torch.bfloat16), (["--dtype", "float32"], torch.float32)):
        out = tmp_path / str(dtype)
        assert main([*export, str(out), *flags]) == 0
        output = capsys.readouterr()
        assert ("values were rounded to torch.bfloat16: quantized" in output.err) == (not flags)
        found = load(out)
        assert {p.dtype for p in found.model.parameters()} == {dtype}
        assert found.model.config.dtype == dtype


def test_an_export_rounds_nothing_unasked(tmp_path, capsys):
    model, weights = tiny("grid:2s")
    narrow = in_dtype(weights, torch.bfloat16)
    start = save(tmp_path / "start", model, narrow)
    export = ["export", "--checkpoint", str(start), "--to", "dense", "--out", str(tmp_path / "x")]
    assert main(export) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[0].endswith(" bytes, float32")
    assert output.out.splitlines()[-1] == f"next: vllm serve {tmp_path / 'x'}"
    assert "rounded" not in output.err
    assert main([*export, "--dtype", "bfloat16"]) == 0
    assert "so were all other weights: quantized ones change by at most 0.0e+00" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_and_saves(tmp_path, text, number):
    flags = tune_flags(text, tmp_path, steps=1_000_000, eval_every=3)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pvopt", *flags], stderr=subprocess.PIPE, env=environment
    )
    metrics = tmp_path / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 300
        while not metrics.exists() or metrics.read_text().count('"step", ') < 4:
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert b"Traceback" not in errors
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    trainer = resume_run(tmp_path)
    assert trainer.step == max(steps)
    assert b"stopped after step %d and saved" % trainer.step in errors


@pytest.mark.parametrize(("native", "count"), [(False, 1), (True, 2)])
def test_demo(tmp_path, capsys, threads, processor, native, count):
    threads(count)
    dtype = processor(native)
    flags = [
        "demo",
        "--model",
        "tiny-llama",
        "--steps",
        "2",
        "--length",
        "64",
        "--out",
        str(tmp_path),
    ]
    assert main(flags) == 0
    shown = capsys.readouterr().out
    assert "the loaded checkpoint equals the saved model" in shown
    assert "the same, saved and loaded" in shown
    assert f"to load and quantize; {dtype}, model.safetensors" in shown
    assert not (tmp_path / "checkpoint" / "training_state.pt").exists()


def test_module_runs():
    done = subprocess.run([sys.executable, "-m", "pvopt", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "quantize" in done.stdout


def test_the_list_of_commands_loads_nothing():
    """An answer takes a fraction of a second; torch alone takes seconds to import."""
    code = "import sys; sys.modules['torch'] = None; from pvopt.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "quantize" in done.stdout


@pytest.mark.parametrize(
    "command", ["quantize", "tune", "eval", "info", "demo", "generate", "report"]
)
def test_every_command_explains_itself(command, capsys):
    """Also where a help text has a percent sign, which argparse would format."""
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_a_killed_replacement_leaves_a_run_that_can_be_found(tmp_path, text):
    assert main(tune_flags(text, tmp_path, steps=1)) == 0
    os.rename(tmp_path / "checkpoint", tmp_path / ".checkpoint.previous")
    assert load_student(tmp_path)[2]["step"] == 1
    trainer = resume_run(tmp_path, steps=2)
    trainer.run()
    found = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")}
    assert found == {"checkpoint", "metrics.jsonl"}


def test_a_checkpoint_is_no_source_for_load_model(tmp_path):
    assert (
        main(["quantize", "--model", "tiny-llama", "--format", "grid:4", "--out", str(tmp_path)])
        == 0
    )
    with pytest.raises(ValueError, match="is a checkpoint of pvopt, not a model"):
        load_model(tmp_path)
