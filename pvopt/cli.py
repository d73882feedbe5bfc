"""The command line: ``python -m pvopt COMMAND ...``, one module of :mod:`pvopt.commands` each."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pvopt.commands.common import shortened
from pvopt.commands.flags import in_flags
from pvopt.commands.packages import missing_package
from pvopt.commands.parsing import CommandParser

__all__ = ["main"]

_COMMANDS = {
    "plan": "show what quantizing and tuning a model would take",
    "quantize": "quantize a model, with or without a text",
    "tune": "tune a quantized model on a text",
    "eval": "measure perplexity on a text, and how near a checkpoint is to its original",
    "generate": "continue a prompt",
    "export": "write a checkpoint for other programs",
    "report": "draw runs and checkpoints on one page",
    "info": "show the true bits per weight of a checkpoint",
    "demo": "quantize SmolLM2-135M to 2 bits and tune it",
}


class _Import(argparse.Action):
    """Import a module while arguments are parsed: before the command looks for its parts."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        try:
            importlib.import_module(value)
        except ImportError as error:
            parser.error(f"argument --import: {error}")


class _Version(argparse.Action):
    """Print versions of everything that results depend on, and end."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        names = ("pvopt", "torch", "transformers", "triton", "numba")
        print(", ".join(f"{name} {_version(name)}" for name in names))
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, 2 after any error, 130 after an interrupt, 128 + n after signal n.

    Raises:
        SystemExit: for arguments that cannot be parsed (code 2), and after ``--help``.

    Example:
        >>> from pvopt.cli import main
        >>> main(["eval", "--model", "tiny-llama", "--context", "64", "--windows", "2"])
        ... # doctest: +ELLIPSIS
        perplexity ... (... nats per token)
        ...
        0
    """
    argv = sys.argv[1:] if argv is None else argv
    args = argparse.Namespace(flags={})
    try:
        args = _parser(argv).parse_args(argv)
        args.command_line = shlex.join(["python", "-m", "pvopt", *argv])
        return args.run(args)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\npvopt: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in argv:
            raise
        message = in_flags(_explained(error), args.flags, vars(args))
        print(f"pvopt: error: {shortened(message)}", file=sys.stderr)
        return 2


def _explained(error: Exception) -> str:
    """Return what went wrong, and what to do about it where that is known."""
    import torch

    from pvopt.engine.finite_check import NonFiniteGradientError

    text = str(error).strip()
    package = missing_package(error)
    if package is not None:
        return f"this {package}"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in text:
        return (
            "out of memory: take a smaller --batch, --micro-batch, --length or --context, --dtype "
            f"bfloat16 or another --device ({text or type(error).__name__})"
        )
    if isinstance(error, ValueError | ImportError | OSError | NonFiniteGradientError):
        return text or type(error).__name__
    return (
        f"{type(error).__name__}: {text or 'no message'}; this is a mistake of pvopt or of the "
        "model's code, --debug shows where"
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser, with the flags of the commands that are named alone.

    What a command knows of formats takes seconds to load, and no list of commands shows it.
    """
    parser = CommandParser(
        prog="pvopt", description="Optimize the discrete weights of language models."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show versions")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    parser.add_argument(
        "--import",
        action=_Import,
        metavar="MODULE",
        dest=argparse.SUPPRESS,
        help="import a Python module first, whose parts commands may then name; may be repeated. "
        "It runs as any code of yours: checkpoints never name modules",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, help in _COMMANDS.items():
        if name not in argv:
            commands.add_parser(name, help=help)
            continue
        module = importlib.import_module(f"pvopt.commands.{'evaluate' if name == 'eval' else name}")
        try:
            module.add_parser(commands, help)
        except ImportError as error:
            if missing_package(error) is None:
                raise
            # The package may be missed only half-way.
            lacking = commands.choices.get(name) or commands.add_parser(name, help=help)
            lacking.lacking = error
    return parser
