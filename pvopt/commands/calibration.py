"""The flags of calibration, and what ``pvopt quantize`` does with a text."""

from __future__ import annotations

import argparse
import statistics
from typing import TYPE_CHECKING, Any

from .common import note
from .mixing import mix
from .tables import progress_bar

if TYPE_CHECKING:
    from pvopt import QuantizedWeights, Scheme
    from pvopt.calibration import Sequences
    from pvopt.llm import LanguageModel

__all__ = ["add_calibration", "calibrated", "calibration_settings"]

# What means nothing without a text, with the defaults.
_NEED_TEXT = {
    "calibration_part": "train",
    "calibration_tokens": 65536,
    "calibration_length": None,
    "chat": False,
    "start": None,
    "end_loss": None,
    "asymmetric": None,
    "fine_tune": 0,
    "work": None,
}


def add_calibration(group: Any) -> None:
    """Add the flags to a group of a command."""
    from pvopt.llm import PARTS

    group.add_argument("--calibration", metavar="TEXT", help="file, hub:NAME or pydoc")
    group.add_argument(
        "--calibration-part",
        default=_NEED_TEXT["calibration_part"],
        choices=PARTS,
        help="of the text; default train: all but the last tenth, which eval can hold out",
    )
    group.add_argument(
        "--calibration-tokens", type=int, default=65536, metavar="N", help="default 65536"
    )
    group.add_argument(
        "--calibration-length",
        type=int,
        metavar="N",
        help="tokens per sequence; default 1024, or the model's positions",
    )
    group.add_argument(
        "--chat",
        action="store_true",
        help='the text has a conversation in JSON in each line ({"messages": [...]}), which the '
        "model's chat template spells out; each is a sequence, the rest of which is padding",
    )
    group.add_argument(
        "--start",
        help="how calibration starts weights, a form below; default: what suits the format",
    )
    group.add_argument(
        "--end-loss",
        nargs="?",
        type=float,
        const=0.5,
        metavar="POWER",
        help="weigh tokens by this power of the squared gradient of the model's loss at a layer's "
        "outputs; without a number 0.5",
    )
    group.add_argument(
        "--asymmetric",
        nargs="?",
        type=float,
        const=0.5,
        metavar="SHARE",
        help="let layers make good for this share of the error of their inputs; without a number "
        "0.5",
    )
    group.add_argument(
        "--fine-tune",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="tune the values of each block towards its original outputs; default 0",
    )
    group.add_argument(
        "--work", metavar="DIR", help="keep finished blocks here: the same command goes on"
    )


def calibration_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what calibration is told besides the text, before any work; nothing without one.

    Raises:
        ValueError: if a setting is wrong, or needs a text.
    """
    if args.calibration is None:
        for name, default in _NEED_TEXT.items():
            if getattr(args, name) != default:
                raise ValueError(f"--{name.replace('_', '-')} needs a text: --calibration TEXT")
        return {}
    from pvopt.calibration import AsymmetricCalibration, EndLoss, FineTuning
    from pvopt.starts import parse_start

    return {
        "start": parse_start(args.start) if args.start else None,
        "end_loss": None if args.end_loss is None else EndLoss(power=args.end_loss),
        "asymmetric": (
            None if args.asymmetric is None else AsymmetricCalibration(share=args.asymmetric)
        ),
        "fine_tuning": FineTuning(epochs=args.fine_tune) if args.fine_tune else None,
    }


def calibrated(
    args: argparse.Namespace,
    loaded: LanguageModel,
    layers: dict[str, Scheme],
    sequences: Sequences,
    settings: dict[str, Any],
    metadata: dict[str, Any],
) -> QuantizedWeights:
    """Quantize layers on a text; say how in the metadata.

    Args:
        args: flags of the command.
        loaded: the model; those of its weights that are quantized are changed.
        layers: schemes of the weights, by name.
        sequences: tokens of the text.
        settings: as :func:`calibration_settings` returns them.
        metadata: of the checkpoint to be.
    """
    from pvopt.calibration import calibrate_
    from pvopt.starts import usual_start
    from pvopt.tuning.records import finite

    start = settings["start"]
    options = {"work": args.work, "seed": args.seed, "progress": _blocks_bar}
    if args.bits is not None:
        result = mix(args, loaded, layers, sequences, metadata, **settings, **options)
    else:
        result = calibrate_(
            loaded.model,
            sequences.tokens,
            layers,
            {name: start or usual_start(scheme) for name, scheme in layers.items()},
            masks=sequences.masks,
            exclude=(),
            end_loss=settings["end_loss"],
            asymmetric=settings["asymmetric"],
            fine_tuning=settings["fine_tuning"],
            **options,
        )
    starts = [start or usual_start(rep.scheme) for rep in result.weights.values()]
    shown = ", ".join(dict.fromkeys(each.name for each in starts))
    metadata["calibration"] = {
        "text": args.calibration,
        "tokens": sequences.count,
        "start": shown,
        "end_loss": args.end_loss,
        "asymmetric": args.asymmetric,
        "fine_tune": args.fine_tune,
    }
    metadata["errors"]["outputs"] = finite(result.layer_errors)
    errors = list(result.layer_errors.values())
    print(
        f"{shown} on {sequences.count:,} tokens: mean relative error of a layer's outputs "
        f"{statistics.mean(errors) if errors else 0:.4f}"
    )
    if result.without_tokens:
        names = ", ".join(result.without_tokens[:3])
        note(
            f"no token of the text reached {len(result.without_tokens)} weights ({names} ...), "
            "which got the fit of their format; a longer text reaches more"
        )
    return result.weights


def _blocks_bar(names: list[str]) -> Any:
    """Return a bar over the blocks to calibrate."""
    return progress_bar(iterable=names, desc="calibrate", unit="block")
