"""``pvopt quantize``: a model in, a checkpoint of its quantized weights out."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

from .common import add_device, choose_device, note, remember_command
from .tables import names_bar, progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from pvopt import QuantizedWeights, Representation, Scheme
    from pvopt.llm import LanguageModel, TextPart

    from .selection import Choice

__all__ = ["add_parser", "run"]

_NEED_TEXT = ("start", "work", "fine_tune", "chat", "end_loss")


def add_parser(commands: Any, help: str) -> None:
    """Add the command to the command line."""
    from pvopt.parametrizations import PARAMETRIZATIONS
    from pvopt.spaces import SPACES
    from pvopt.starts import STARTS

    from .mixing import add_mixing
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
    _add_calibration(parser.add_argument_group("calibration"))
    group = parser.add_argument_group("computation")
    group.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of the model; default float32",
    )
    add_device(group)
    parser.set_defaults(run=run)


def _add_calibration(group: Any) -> None:
    from pvopt.llm import PARTS

    group.add_argument("--calibration", metavar="TEXT", help="file, hub:NAME or pydoc")
    group.add_argument(
        "--calibration-part",
        default="train",
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
        "--fine-tune",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="tune the values of each block towards its original outputs; default 0",
    )
    group.add_argument(
        "--work", metavar="DIR", help="keep finished blocks here: the same command goes on"
    )


def run(args: argparse.Namespace) -> int:
    """Quantize and save, or say what that would give."""
    import torch

    from pvopt.formats import save, storage_report
    from pvopt.llm import TextPart, empty_model, load_model, stable_source
    from pvopt.tuning import check_checkpoint_folder, delete_run

    from .dry_run import dry_run
    from .mixing import check_mixing
    from .selection import choose

    check_mixing(args)
    if not args.dry_run:
        check_checkpoint_folder(args.out, overwrite=args.overwrite)
    if args.calibration is None:
        for name in _NEED_TEXT:
            if getattr(args, name):
                raise ValueError(f"--{name.replace('_', '-')} needs a text: --calibration TEXT")
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
    weights = _quantized(args, loaded, choice, text, metadata)
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


def _quantized(
    args: argparse.Namespace,
    loaded: LanguageModel,
    choice: Choice,
    text: TextPart | None,
    metadata: dict[str, Any],
) -> QuantizedWeights:
    """Quantize the weights outside of the blocks, then the layers."""
    from pvopt.calibration import outside_blocks
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
    if text is not None:
        apart = outside_blocks(model, layers)
        outside |= {name: layers.pop(name) for name in apart}
        if apart:
            note(f"{len(apart)} weights outside of the blocks ({apart[0]} ...) get a plain fit")
    if outside:  # first, so that blocks are calibrated on what they will be given
        found |= quantize_(model, outside, progress=names_bar, **exact)
    if layers and text is None:
        found |= quantize_(model, layers, progress=names_bar, **exact)
    elif layers and text is not None:
        found |= _calibrated(args, loaded, layers, text, metadata)
    names = [name for name, _ in model.named_parameters() if name in found]
    return QuantizedWeights(model, {name: found[name] for name in names})


def _calibrated(
    args: argparse.Namespace,
    loaded: LanguageModel,
    layers: dict[str, Scheme],
    text: TextPart,
    metadata: dict[str, Any],
) -> QuantizedWeights:
    """Quantize layers on a text; say how in the metadata."""
    from pvopt.calibration import EndLoss, FineTuning, calibrate_, sequences_of
    from pvopt.starts import parse_start, usual_start
    from pvopt.tuning.records import finite

    from .mixing import mix

    try:
        sequences = sequences_of(
            loaded,
            text.text,
            length=args.calibration_length,
            tokens=args.calibration_tokens,
            chat=args.chat,
        )
    except ValueError as error:
        raise ValueError(f"--calibration: {error}") from error
    options: dict[str, Any] = {
        "end_loss": None if args.end_loss is None else EndLoss(power=args.end_loss),
        "fine_tuning": FineTuning(epochs=args.fine_tune) if args.fine_tune else None,
        "work": args.work,
        "seed": args.seed,
        "progress": _blocks_bar,
    }
    start = parse_start(args.start) if args.start else None
    if args.bits is not None:
        result = mix(args, loaded, layers, sequences, metadata, start=start, **options)
    else:
        result = calibrate_(
            loaded.model,
            sequences.tokens,
            layers,
            {name: start or usual_start(scheme) for name, scheme in layers.items()},
            masks=sequences.masks,
            exclude=(),
            **options,
        )
    starts = [start or usual_start(rep.scheme) for rep in result.weights.values()]
    shown = ", ".join(dict.fromkeys(start.name for start in starts))
    metadata["calibration"] = {
        "text": text.source,
        "tokens": sequences.count,
        "start": shown,
        "end_loss": args.end_loss,
        "fine_tune": args.fine_tune,
    }
    metadata["seen"] = [text.record("calibration")]
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
