"""What the commands share: flags of computation, models, checkpoints and their originals."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from pvopt import QuantizedWeights
    from pvopt.llm import LanguageModel, TextPart

__all__ = [
    "add_computation",
    "choose_device",
    "note",
    "open_source",
    "original_of",
    "prepare_dtype",
    "remember_command",
    "shortened",
    "warn_of_seen",
]


def note(message: str) -> None:
    """Print a line beside the result."""
    print(f"pvopt: note: {message}", file=sys.stderr)


def add_computation(parser: argparse.ArgumentParser) -> None:
    """Add the flags for dtype and device of the computation."""
    from pvopt.tuning.settings import DTYPES

    group = parser.add_argument_group("computation")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=DTYPES,
        help="of the computation; default auto: the one that a checkpoint was tuned in, else that "
        "of a model in half precision, else bfloat16 where the hardware multiplies it",
    )
    add_device(group)


def add_device(group: Any) -> None:
    """Add the flag for the device."""
    group.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 ...")


def choose_device(name: str) -> torch.device:
    """Return a device that is there.

    Raises:
        ValueError: if it is not.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise ValueError(f"--device {name!r} is none that torch can use here: {reason}") from error
    if device.type == "meta":
        raise ValueError("--device 'meta' computes nothing")
    return device


def prepare_dtype(wanted: str, model: Any, metadata: Mapping[str, Any]) -> str:
    """Return the dtype to compute in, by its name; float32 widens a model in half precision."""
    from pvopt.tuning import computing_dtype

    dtype = computing_dtype(wanted, model, metadata)
    if dtype == "float32":
        model.float()
    return dtype


def open_source(
    model: str | None, checkpoint: str | None, device: torch.device
) -> tuple[LanguageModel, QuantizedWeights | None, dict[str, Any]]:
    """Load a model or a checkpoint.

    Args:
        model: name of a model, if no checkpoint is given.
        checkpoint: folder of one.
        device: where to.

    Returns:
        The model, the quantized weights and the metadata of a checkpoint.
    """
    from pvopt.llm import load_model
    from pvopt.tuning import load_student

    if checkpoint is None:
        assert model is not None
        return load_model(model, device=device), None, {}
    return load_student(checkpoint, device=device)


def original_of(folder: str | Path, metadata: Mapping[str, Any], flag: str = "--model") -> str:
    """Return the name of the original of a checkpoint.

    Args:
        folder: of the checkpoint.
        metadata: of it.
        flag: by which the command takes another one.

    Raises:
        CheckpointError: if the checkpoint names none, or it is a folder or a file that is not here.
    """
    from pvopt.formats import CheckpointError

    model = metadata.get("model")
    if not isinstance(model, str):
        raise CheckpointError(f"{folder}: does not name its original; give it by {flag}")
    if Path(model).is_absolute() and not Path(model).exists():
        raise CheckpointError(
            f"{folder}: was made of the model {model}, which is not on this machine; give it by "
            f"{flag}"
        )
    return model


def remember_command(metadata: dict[str, Any], args: argparse.Namespace) -> None:
    """Add the command line to those that a checkpoint was made with."""
    before = metadata.get("commands")
    commands = list(before) if isinstance(before, list) else []
    metadata["commands"] = [*commands, args.command_line]


def warn_of_seen(text: TextPart, metadata: Mapping[str, Any]) -> None:
    """Say that a checkpoint was made with the text that it is measured on."""
    for record in text.recorded(metadata):
        if text.overlaps(record):
            other = "--part held-out was not used" if record["part"] == "train" else "take another"
            note(
                f"the checkpoint was made with the text {text.source} ({record['use']} on "
                f"{record['text']}, {record['part']}): it will look better than on texts it has "
                f"not seen; {other}"
            )


def shortened(message: str, limit: int = 600) -> str:
    """Return a message as one line that can be read at once."""
    line = " ".join(message.split())
    return line if len(line) <= limit else f"{line[:limit].rsplit(' ', 1)[0]} ... (all: --debug)"
