"""``pvopt tune``: distil a quantized model from its own full-precision original."""

from __future__ import annotations

import argparse
import shlex
import sys
import types
import typing
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import choose_device, original_of, remember_command, warn_of_seen
from .tables import names_bar, print_table, progress_bar

if TYPE_CHECKING:
    from pvopt.llm import PerplexityResult
    from pvopt.tuning import StepRecord, StopRequest, Trainer

__all__ = ["add_fields", "add_parser", "run", "train"]

# What a resumed run may do differently.
_CHANGEABLE = {"steps", "device", "checkpoint_every", "eval_every", "eval_windows"}

_LOGS = ("tensorboard",)


def add_parser(commands: Any, help: str) -> None:
    """Add the command to the command line."""
    from pvopt.parametrizations import PARAMETRIZATIONS
    from pvopt.rules.rounding import ROUNDINGS
    from pvopt.rules.subspace import SUBSPACES
    from pvopt.spaces import SPACES
    from pvopt.tuning import Inputs, TuneSettings

    # Only what the user gave is in the namespace: a resumed run keeps the rest as it was.
    parser = commands.add_parser(
        "tune",
        help=help,
        argument_default=argparse.SUPPRESS,
        description="Distil a quantized model from its own full-precision original.",
    )
    parser.example = "pvopt tune --checkpoint runs/start --text train.txt --out runs/tuned"
    parser.explained = (PARAMETRIZATIONS, SPACES, SUBSPACES, ROUNDINGS)
    add_fields(parser.add_argument_group("inputs"), Inputs)
    parser.add_argument("--out", required=True, help="folder for checkpoint and metrics")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in --out")
    parser.add_argument(
        "--log-to",
        choices=_LOGS,
        help="write losses, perplexities, code changes and learning rates for it, too, into --out",
    )
    add_fields(parser.add_argument_group("settings"), TuneSettings)
    parser.set_defaults(run=run)


def add_fields(parser: Any, settings: Any, names: Sequence[str] | None = None) -> None:
    """Add a flag for every field of a dataclass, explained by the field's metadata.

    Args:
        parser: of the command, or a group in it.
        settings: the dataclass.
        names: of the fields that get a flag; None for all.
    """
    hints = typing.get_type_hints(settings)
    for field in (f for f in fields(settings) if names is None or f.name in names):
        help, default = field.metadata["help"].replace("%", "%%"), field.default
        shown = "" if default in (None, MISSING) else f" (default {default})"
        flag, kind = "--" + field.name.replace("_", "-"), _plain_type(hints[field.name])
        if kind is bool:
            shown = f" (default {'yes' if default else 'no'})"
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=help + shown)
        else:
            choices = field.metadata["choices"]
            parser.add_argument(flag, type=kind, choices=choices, help=help + shown)


def run(args: argparse.Namespace) -> int:
    """Start or resume a run and see it to its end."""
    from pvopt.tuning import Inputs, StopRequest, TuneSettings, resume_run, start_run

    given = vars(args)
    log_to = given.get("log_to")
    if log_to is not None:  # refused before any work
        import tensorboard  # noqa: F401
    settings = {f.name: given[f.name] for f in fields(TuneSettings) if f.name in given}
    choose_device(settings.get("device", "cpu"))
    inputs = {f.name: given[f.name] for f in fields(Inputs) if f.name in given}
    if given.get("resume"):
        fixed = sorted((settings.keys() - _CHANGEABLE) | inputs.keys())
        if fixed or given.get("overwrite"):
            flags = ["--" + name.replace("_", "-") for name in fixed] or ["--overwrite"]
            raise ValueError(
                f"{', '.join(flags)}: a resumed run keeps its settings; only "
                f"{', '.join('--' + n.replace('_', '-') for n in sorted(_CHANGEABLE))} may change"
            )
        trainer = resume_run(args.out, **settings)
        print(f"resuming {args.out} at step {trainer.step} of {trainer.settings.steps}")
    else:
        checked = TuneSettings(**settings)
        trainer = start_run(
            Inputs(**_with_model(inputs)),
            checked,
            args.out,
            overwrite=given.get("overwrite", False),
            progress=names_bar,
        )
    remember_command(trainer.metadata, args)
    _warn(trainer)
    with StopRequest() as stop:
        train(trainer, stop, log_to=log_to)
    if stop():
        print(
            f"pvopt: stopped after step {trainer.step} and saved; go on with "
            f"pvopt tune --resume --out {args.out}",
            file=sys.stderr,
        )
    return stop.exit_code


def train(trainer: Trainer, stop: StopRequest, *, log_to: str | None = None) -> None:
    """Run a trainer with a progress bar and a log, then print its perplexities."""
    from pvopt.tuning import TensorBoardLog

    settings = trainer.settings
    with ExitStack() as stack:
        bar = stack.enter_context(
            progress_bar(total=settings.steps, initial=trainer.step, desc="tune", unit="step")
        )
        log = None
        if log_to is not None:
            log = stack.enter_context(TensorBoardLog(trainer.folder, settings, trainer.step))

        def on_step(step: int, record: StepRecord) -> None:
            bar.set_postfix_str(
                f"loss {record.loss:.4g}, {record.tokens_per_s:.0f} tokens/s, "
                f"{record.changed_groups} codes changed",
                refresh=False,
            )
            bar.update()
            if log is not None:
                log.on_step(step, record)

        def on_evaluation(step: int, model: str, result: PerplexityResult) -> None:
            bar.write(f"step {step}: perplexity of the {model} {result.perplexity:.5g}")
            if log is not None:
                log.on_evaluation(step, model, result)

        trainer.run(stop=stop, on_step=on_step, on_evaluation=on_evaluation)
    rows = [
        [r["model"], str(r["step"]), _number(r["nll_per_token"]), _number(r["perplexity"])]
        for r in trainer.records.read()
        if r["kind"] == "evaluation"
    ]
    print_table(["model", "step", "nats per token", "perplexity"], rows)
    print(
        f"{settings.context_length} tokens of context, up to {settings.eval_windows} windows, "
        f"{settings.dtype}"
    )
    for path in (trainer.checkpoint, trainer.records.path):
        print(path)
    print(f"next: python -m pvopt report {shlex.quote(str(trainer.folder))}")


def _warn(trainer: Trainer) -> None:
    """Say that the student was made with the text that it is evaluated on."""
    from pvopt.llm import TextPart

    inputs = trainer.metadata["inputs"]
    own = inputs["eval_text"]
    text = TextPart.load(own or inputs["text"], "all" if own else "held-out")
    warn_of_seen(text, trainer.metadata)


def _with_model(inputs: dict[str, Any]) -> dict[str, Any]:
    """Complete the inputs by the original of a checkpoint."""
    from pvopt.formats import read_metadata
    from pvopt.tuning import find_checkpoint

    if "checkpoint" in inputs and "format" in inputs:
        raise ValueError("--format does not go with --checkpoint, which has one")
    if "model" in inputs:
        return inputs
    if "checkpoint" not in inputs:
        raise ValueError("one of --model, --checkpoint and --resume is needed")
    folder = find_checkpoint(Path(inputs["checkpoint"]))
    return {**inputs, "model": original_of(folder, read_metadata(folder))}


def _plain_type(hint: Any) -> Any:
    """Return T of ``T`` or ``T | None``."""
    if isinstance(hint, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)
    return hint


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.5g}"
