"""The parser of all commands: one-line errors with a guess of what was meant, help on forms."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from pvopt.core.registry import Registry

from .flags import meant_flag
from .tables import table_lines

__all__ = ["CommandParser"]


class CommandParser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, and explains short names below its help.

    Attributes:
        explained: registries whose forms are listed, with those registered since.
        example: a command line that works.
        lacking: why the command cannot run here, or None.
    """

    explained: Sequence[Registry[Any]] = ()
    example: str = ""
    lacking: ImportError | None = None

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        if self.lacking is not None:
            raise self.lacking
        found, unknown = super().parse_known_args(args, namespace)
        if self.example:  # a command: its own flags are the ones to guess from
            if unknown:
                self.error(f"unrecognized arguments: {' '.join(unknown)}")
            found.flags = {a.dest: a.option_strings[0] for a in self._actions if a.option_strings}
        return found, unknown

    def error(self, message: str) -> NoReturn:
        guess = self._guess(message)
        self.exit(2, f"{self.prog}: error: {message}{guess} (see {self.prog} --help)\n")

    def _guess(self, message: str) -> str:
        choice = re.search(r"invalid choice: '(.+?)' \(choose from (.+)\)", message)
        if choice is not None:
            return _meant(choice[1], re.findall(r"[\w.-]+", choice[2]))
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown is None:
            return ""
        known = self._option_string_actions
        alike = meant_flag(unknown[1], known)
        return f"; did you mean {alike}?" if alike else _meant(unknown[1], known)

    def format_help(self) -> str:
        text = super().format_help()
        if self.example:
            text += f"\nexample:\n  {self.example}\n"
        return text + "".join(f"\n{_forms(found)}" for found in self.explained)


def _meant(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _forms(registry: Registry[Any]) -> str:
    """Return a table of the forms of short names."""
    rows = [(form.form, form.meaning, form.example) for form in registry.forms]
    lines = table_lines((registry.kind, "meaning", "example"), rows, left=3)
    return "".join(f"{line}\n" for line in lines)
