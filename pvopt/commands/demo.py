"""``pvopt demo``: a small language model to 2 bits and back to sense, in minutes on a CPU."""

from __future__ import annotations

import argparse
import time
from typing import Any

from .common import remember_command
from .tables import names_bar, print_table
from .tune import train

__all__ = ["add_parser", "run"]


def add_parser(commands: Any, help: str) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("demo", help=help)
    parser.example = "pvopt demo --steps 24"
    parser.add_argument("--model", default="smollm2", help="default smollm2")
    parser.add_argument("--steps", type=int, default=24, help="default 24")
    parser.add_argument("--length", type=int, default=512, help="tokens per sequence; default 512")
    parser.add_argument("--out", default="runs/demo", help="folder; an earlier demo is replaced")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Quantize, tune, save, load again, compare."""
    import torch

    from pvopt.formats import storage_report
    from pvopt.llm import perplexity
    from pvopt.tuning import (
        Inputs,
        StopRequest,
        TuneSettings,
        autocast_dtype,
        load_student,
        start_run,
    )

    start = time.perf_counter()
    settings = TuneSettings(
        steps=args.steps,
        length=args.length,
        micro_batch=1,  # the least memory, at no cost on a CPU
        eval_every=max(1, args.steps // 4),
        eval_windows=12,
    )
    inputs = Inputs(model=args.model, format="2x8g8", text="pydoc")
    print(f"{args.model} -> {inputs.format}, then {args.steps} steps of {settings.recipe} on pydoc")
    trainer = start_run(
        inputs, settings, args.out, overwrite=True, resumable=False, progress=names_bar
    )
    remember_command(trainer.metadata, args)
    quantized_s = time.perf_counter() - start
    with StopRequest() as stop:
        train(trainer, stop)
    if stop():
        return stop.exit_code
    evaluations = [r for r in trainer.records.read() if r["kind"] == "evaluation"]
    teacher = next(r for r in evaluations if r["model"] == "teacher")
    first, *_, last = [r for r in evaluations if r["model"] == "student"]

    loaded, weights, _ = load_student(trainer.checkpoint)
    again = perplexity(
        loaded.model,
        trainer.eval_tokens,
        context_length=settings.context_length,
        max_windows=settings.eval_windows,
        autocast_dtype=autocast_dtype(trainer.settings.dtype),
    )
    tensors = [(t, u) for name in weights for t, u in _pairs(weights[name], trainer.weights[name])]
    equal = all(torch.equal(t, u) for t, u in tensors)
    close = abs(again.nll_per_token - last["nll_per_token"]) <= 1e-6 * last["nll_per_token"]

    report = storage_report(trainer.checkpoint)
    bits = f"{report.bits_per_weight_16:.2f}"
    full = f"{8 * next(trainer.teacher.parameters()).element_size()}"
    print()
    print_table(
        ["held-out perplexity", "bits per quantized weight", "perplexity"],
        [
            ["full precision", full, f"{teacher['perplexity']:.5g}"],
            [f"{inputs.format}, k-means start", bits, f"{first['perplexity']:.5g}"],
            [f"{inputs.format}, {args.steps} steps", bits, f"{last['perplexity']:.5g}"],
            ["the same, saved and loaded", bits, f"{again.perplexity:.5g}"],
        ],
    )
    minutes = (time.perf_counter() - start) / 60
    print(
        f"\n{minutes:.1f} minutes, of which {quantized_s / 60:.1f} to load and quantize; "
        f"{trainer.settings.dtype}, model.safetensors {report.file_bytes / 1e6:.0f} MB"
    )
    if not (equal and close):
        print("FAILED: the loaded checkpoint differs from the saved model")
        return 1
    print("the loaded checkpoint equals the saved model")
    return 0


def _pairs(left: Any, right: Any) -> list[tuple[Any, Any]]:
    """Return corresponding tensors of two representations."""
    both = zip(left.tensors(), right.tensors(), strict=True)
    return [(mine, theirs) for (_, mine), (_, theirs) in both]
