"""Arguments of the library in messages, as the command line spells them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["in_flags", "meant_flag"]

# Arguments whose flags have other names, which differ between the commands.
_RENAMED = {
    "context_length": "context",
    "max_windows": "windows",
    "batch_size": "batch",
    "sequence_length": "length",
    "beam_size": "beam",
    "length": "calibration_length",
    "tokens": "calibration_tokens",
    "epochs": "fine_tune",
    "power": "end_loss",
    "share": "asymmetric",
}
# At the beginning of a message, before its verb; as NAME=VALUE, but not among the settings of a
# format; and names with underscores, which are no words of a sentence, but may be parts of paths.
_SUBJECT = re.compile(r"^(\w+)(?= (?:must|needs|does not fit)\b)")
_ASSIGNED = re.compile(r"(?<![\w\[./'\"-])(?<!, )(\w+)(?==)")
_JOINED = re.compile(r"(?<![\w\[./'\"=-])([a-z]+(?:_[a-z]+)+)(?![\w./'\"=(])")
# What is quoted was given: a model, a text, or the short name of a part.
_QUOTED = re.compile(
    r"(source=|^(?:parametrization|start|rounding|subspace rule) )"
    r"('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
)

# What programs call one thing: a command has at most a few of each line.
_ALIKE = (
    ("text", "calibration", "data", "dataset", "corpus"),
    ("checkpoint", "model", "path", "folder", "input"),
    ("original", "model", "teacher", "reference"),
    ("out", "output", "output-dir", "save", "save-dir"),
    ("to", "format", "scheme", "bits", "wbits", "group-size"),
    ("device", "gpu", "cuda", "cpu", "device-map"),
    ("steps", "epochs", "iterations", "max-steps"),
    ("tokens", "max-new-tokens", "max-tokens", "new-tokens"),
    ("calibration-tokens", "tokens", "samples", "nsamples"),
    ("context", "length", "calibration-length", "seqlen", "max-length"),
    ("windows", "eval-windows", "limit", "samples"),
    ("lr", "learning-rate"),
    ("lr-schedule", "scheduler", "schedule"),
    ("overwrite", "force", "yes"),
    ("exclude", "skip", "ignore", "modules-to-not-convert"),
    ("head", "lm-head"),
    ("start", "recipe", "method", "algorithm"),
)


def in_flags(message: str, flags: Mapping[str, str], given: Mapping[str, Any]) -> str:
    """Return a message of the library with the flags of a command in place of its arguments.

    Args:
        message: names an argument at its beginning, as ``NAME=VALUE``, or by a name with an
            underscore.
        flags: of the command, by the names of its arguments.
        given: values of the arguments.

    Example:
        >>> from pvopt.commands.flags import in_flags
        >>> flags = {"micro_batch": "--micro-batch", "batch": "--batch", "text": "--text"}
        >>> in_flags("micro_batch must divide batch=4, got 3", flags, {})
        '--micro-batch must divide --batch=4, got 3'
        >>> in_flags("source='x.txt' holds an empty text", flags, {"text": "x.txt"})
        "--text 'x.txt' holds an empty text"
    """

    def flag(found: re.Match[str]) -> str:
        name = found[1]
        renamed = name if name in flags else _RENAMED.get(name, name)
        return flags.get(renamed, name)

    def quoted(found: re.Match[str]) -> str:
        own = [flags[name] for name in flags if _names(given.get(name), found[2][1:-1])]
        kept = "" if found[1] == "source=" else found[1]
        return (f"{own[0]} " if own else kept) + found[2]

    message = _QUOTED.sub(quoted, message)
    for pattern in (_SUBJECT, _ASSIGNED, _JOINED):
        message = pattern.sub(flag, message)
    return message


def _names(value: Any, source: str) -> bool:
    """Tell whether a value that was given is a source, which may have been made absolute."""
    return isinstance(value, str) and source in (value, os.path.abspath(value))


def meant_flag(flag: str, known: Mapping[str, Any]) -> str | None:
    """Return the flag of a command that means what a flag of other commands or programs does.

    Args:
        flag: that the command does not have.
        known: flags that it has.

    Example:
        >>> from pvopt.commands.flags import meant_flag
        >>> meant_flag("--max-new-tokens", {"--tokens": None, "--temperature": None})
        '--tokens'
    """
    word = flag.removeprefix("--").replace("_", "-")
    for alike in _ALIKE:
        if word in alike:
            for other in alike:
                if f"--{other}" in known and other != word:
                    return f"--{other}"
    return None
