"""``pvopt quantize``: a model in, a checkpoint of its quantized weights out."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .calibration import add_calibration, calibrated, calibration_settings
from .common import add_device, choose_device, note, remember_command
from .mixing import add_mixing, check_mixing
from .tables import names_bar

if TYPE_CHECKING:
    from torch import Tensor

    from pvopt import QuantizedWeights, Representation
    from pvopt.llm import LanguageModel, TextPart

    from .selection import Choice

__all__ = ["add_parser", "run"]


def add_parser(commands: Any, help: str) -> None:
    """Add the command to the command line."""
    from pvopt.parametrizations import PARAMETRIZATIONS
    from pvopt.spaces import SPACES
    from pvopt.starts import STARTS

    from .selection import add_selection

    parser = commands.add_parser("quantize", help=help)
    parser.explained = (PARAMETRIZATIONS, SPACES, STARTS)
    parser.example = (
        "pvopt quantize --model smollm2 --format grid:3g64 --calibration train.txt --out runs/start"
    )
    parser.add_argument(
        "--model", required=True, help="folder, GGUF file, hub id, smollm2 or tiny-llama"
    )
    parser.add_argument("--out", required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the checkpoint or the run in --out"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show layers, bits, file size, memory and time, and write nothing",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the k-means start; default 0")
    add_selection(parser)
    add_mixing(parser)
    add_calibration(parser.add_argument_group("calibration"))
    group = parser.add_argument_group("computation")
    group.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of the model; default float32",
    )
    add_device(group)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Quantize and save, or say what that would give."""
    import torch

    from pvopt.formats import save, storage_report
    from pvopt.formats.places import check_room
    from pvopt.llm import TextPart, empty_model, load_model, stable_source
    from pvopt.tuning import check_checkpoint_folder, delete_run

    from .dry_run import dry_run
    from .selection import choose

    if not args.dry_run:
        check_checkpoint_folder(args.out, overwrite=args.overwrite)
        if args.work is not None:
            _check_apart(args.out, args.work)
            check_room(Path(args.work) / "blocks")
    check_mixing(args)
    settings = calibration_settings(args)
    dtype, device = getattr(torch, args.dtype), choose_device(args.device)
    part = "all" if args.chat else args.calibration_part
    text = None if args.calibration is None else TextPart.load(args.calibration, part)
    if args.dry_run:
        empty = empty_model(args.model, dtype=dtype)
        dry_run(empty, choose(args, empty), calibrated=text is not None)
        return 0
    loaded = load_model(args.model, dtype=dtype, device=device)
    choice = choose(args, loaded.model)
    if not args.partial:
        choice.check(loaded.model)
    metadata: dict[str, Any] = {
        "model": stable_source(args.model),
        "format": args.format,
        "seed": args.seed,
        "errors": {"weights": {}, "outputs": {}},
    }
    remember_command(metadata, args)
    start = time.perf_counter()
    weights = _quantized(args, loaded, choice, text, settings, metadata)
    seconds = time.perf_counter() - start
    if args.overwrite:
        delete_run(args.out)
    save(args.out, loaded.model, weights, tokenizer=loaded.tokenizer, metadata=metadata, card=True)
    report = storage_report(args.out)
    more = f", {choice.excluded:,} weights excluded" if choice.excluded else ""
    share = f"{choice.share(loaded.model):.0%} of the matrices{more}"
    print(
        f"quantized {len(weights)} weights, {share}, to {report.bits_per_weight_16:.3f} bits per "
        f"weight ({report.total_bits_per_weight:.3f} over all weights of the file) in "
        f"{seconds:.1f} s: {args.out} ({report.file_bytes / 1e6:.1f} MB)"
    )
    return 0


def _check_apart(out: str, work: str) -> None:
    """Raise if one folder is the other or inside of it: then saving would fail, after the work."""
    places = [Path(os.path.realpath(folder)) for folder in (out, work)]
    if places[0].is_relative_to(places[1]) or places[1].is_relative_to(places[0]):
        raise ValueError(f"--out and --work must be two folders side by side, got {out} and {work}")


def _quantized(
    args: argparse.Namespace,
    loaded: LanguageModel,
    choice: Choice,
    text: TextPart | None,
    settings: dict[str, Any],
    metadata: dict[str, Any],
) -> QuantizedWeights:
    """Quantize the weights outside of the blocks, then the layers."""
    from pvopt.calibration import outside_blocks, sequences_of
    from pvopt.quantization import quantize_
    from pvopt.tuning import relative_error
    from pvopt.tuning.records import finite
    from pvopt.weights import QuantizedWeights

    model = loaded.model
    errors: dict[str, float | None] = metadata["errors"]["weights"]

    def note_error(name: str, dense: Tensor, rep: Representation) -> None:
        errors[name] = finite(relative_error(rep.decode(), dense))

    exact: dict[str, Any] = {"exclude": (), "seed": args.seed, "on_fit": note_error}
    found: dict[str, Any] = {}
    outside, layers = dict(choice.outside), dict(choice.layers)
    sequences = None
    if text is not None:
        sequences = sequences_of(
            loaded,
            text.text,
            length=args.calibration_length,
            tokens=args.calibration_tokens,
            chat=args.chat,
        )
        metadata["seen"] = [text.record("calibration")]
        apart = outside_blocks(model, layers)
        outside |= {name: layers.pop(name) for name in apart}
        if apart:
            note(f"{len(apart)} weights outside of the blocks ({apart[0]} ...) get a plain fit")
    if outside:  # first, so that blocks are calibrated on what they will be given
        found |= quantize_(model, outside, progress=names_bar, **exact)
    if layers and sequences is None:
        found |= quantize_(model, layers, progress=names_bar, **exact)
    elif layers and sequences is not None:
        found |= calibrated(args, loaded, layers, sequences, settings, metadata)
    names = [name for name, _ in model.named_parameters() if name in found]
    return QuantizedWeights(model, {name: found[name] for name in names})
