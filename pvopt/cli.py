"""The command line: ``python -m pvopt COMMAND ...``, one module of :mod:`pvopt.commands` each."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from pvopt.engine.finite_check import NonFiniteGradientError

__all__ = ["main"]

_USER_ERRORS = (ValueError, ImportError, OSError, NonFiniteGradientError)


class _Import(argparse.Action):
    """Import a module while arguments are parsed: before the command looks for its parts."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        try:
            importlib.import_module(value)
        except ImportError as error:
            parser.error(f"argument --import: {error}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, 2 after an error of the user, 128 + n after signal n.

    Raises:
        SystemExit: for arguments that cannot be parsed (code 2), and after ``--help``.

    Example:
        >>> main(["eval", "--model", "tiny-llama", "--context", "64", "--windows", "2"])
        ... # doctest: +ELLIPSIS
        perplexity ... (... nats per token)
        ...
        0
    """
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\npvopt: interrupted", file=sys.stderr)
        return 130
    except _USER_ERRORS as error:
        if args.debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"pvopt: error: {message}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    # Imported here, so that the library can be imported without the extras of the commands.
    from pvopt.commands import demo, evaluate, generate, info, quantize, tune
    from pvopt.commands.common import CommandParser

    parser = CommandParser(
        prog="pvopt", description="Optimize the discrete weights of language models."
    )
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
    for module in (quantize, tune, evaluate, generate, info, demo):
        module.add_parser(commands)
    return parser
