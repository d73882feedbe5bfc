"""``pvopt quantize``: a model in, a checkpoint of its quantized weights out."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING, Any

from .common import names_bar, progress_bar

if TYPE_CHECKING:
    from pvopt import QuantizedWeights, Scheme
    from pvopt.llm import LanguageModel

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    from pvopt.parametrizations import PARAMETRIZATIONS
    from pvopt.spaces import SPACES
    from pvopt.starts import STARTS

    parser = commands.add_parser("quantize", help="quantize a model, with or without a text")
    parser.add_argument("--model", required=True, help="folder, hub id, smollm2 or tiny-llama")
    parser.explained = (PARAMETRIZATIONS, SPACES, STARTS)
    parser.add_argument("--format", default="2x8g8", help="a form below; default 2x8g8")
    parser.add_argument("--calibration", metavar="TEXT", help="file, hub:NAME or pydoc")
    parser.add_argument(
        "--calibration-tokens", type=int, default=65536, metavar="N", help="default 65536"
    )
    parser.add_argument(
        "--calibration-length",
        type=int,
        default=1024,
        metavar="N",
        help="tokens per sequence; default 1024",
    )
    parser.add_argument(
        "--start",
        help="how calibration starts weights, a form below; default: what suits the format",
    )
    parser.add_argument(
        "--fine-tune",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="tune the values of each block towards its original outputs; default 0",
    )
    parser.add_argument(
        "--work", metavar="DIR", help="keep finished blocks here: the same command goes on"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--seed", type=int, default=0, help="of the k-means start; default 0")
    parser.add_argument("--out", required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the checkpoint or the run in --out"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Quantize and save."""
    import torch

    from pvopt.formats import save, storage_report
    from pvopt.llm import load_model
    from pvopt.parametrizations import parse_scheme
    from pvopt.tuning import check_checkpoint_folder, delete_run
    from pvopt.weights import quantize_

    check_checkpoint_folder(args.out, overwrite=args.overwrite)
    scheme = parse_scheme(args.format)
    metadata = {"model": args.model, "format": args.format, "seed": args.seed}
    if args.calibration is None:
        for name in ("start", "work", "fine_tune"):
            if getattr(args, name):
                raise ValueError(f"--{name.replace('_', '-')} needs a text: --calibration TEXT")
    loaded = load_model(args.model, dtype=getattr(torch, args.dtype))
    start = time.perf_counter()
    if args.calibration is None:
        weights = quantize_(loaded.model, scheme, seed=args.seed, progress=names_bar)
    else:
        weights = _calibrated(args, loaded, scheme, metadata)
    seconds = time.perf_counter() - start
    if args.overwrite:
        delete_run(args.out)
    save(args.out, loaded.model, weights, tokenizer=loaded.tokenizer, metadata=metadata)
    report = storage_report(args.out)
    print(
        f"quantized {len(weights)} weights to {report.bits_per_weight_16:.3f} bits per weight "
        f"in {seconds:.1f} s: {args.out} ({report.file_bytes / 1e6:.1f} MB)"
    )
    return 0


def _calibrated(
    args: argparse.Namespace,
    loaded: LanguageModel,
    scheme: Scheme,
    metadata: dict[str, Any],
) -> QuantizedWeights:
    """Quantize on a text; say how in the metadata."""
    from pvopt.calibration import FineTuning, calibrate_
    from pvopt.llm import load_text
    from pvopt.starts import parse_start, usual_start

    tokens = loaded.encode(load_text(args.calibration))
    length = args.calibration_length
    if not 1 <= length <= args.calibration_tokens:
        raise ValueError(
            f"--calibration-length must be in 1..{args.calibration_tokens}, got {length}"
        )
    count = min(len(tokens), args.calibration_tokens) // length
    if not count:
        raise ValueError(
            f"the text to calibrate on has {len(tokens)} tokens, less than one sequence of "
            f"{length}: take a longer one or a smaller --calibration-length"
        )
    start = parse_start(args.start) if args.start else usual_start(scheme)
    result = calibrate_(
        loaded.model,
        tokens[: count * length].view(count, length),
        scheme,
        start,
        fine_tuning=FineTuning(epochs=args.fine_tune) if args.fine_tune else None,
        work=args.work,
        seed=args.seed,
        progress=_blocks_bar,
    )
    metadata["calibration"] = {
        "text": args.calibration,
        "tokens": count * length,
        "start": start.name,
        "fine_tune": args.fine_tune,
    }
    print(
        f"{start.name} on {count * length:,} tokens: mean relative error of a layer's outputs "
        f"{statistics.mean(result.layer_errors.values()):.4f}"
    )
    return result.weights


def _blocks_bar(names: list[str]) -> Any:
    """Return a bar over the blocks to calibrate."""
    return progress_bar(iterable=names, desc="calibrate", unit="block")
