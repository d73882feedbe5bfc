"""``pvopt quantize``: a model in, a checkpoint of its quantized weights out."""

from __future__ import annotations

import argparse
import time
from typing import Any

from .common import names_bar

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    from pvopt.tuning import FORMATS

    parser = commands.add_parser("quantize", help="quantize a model without data")
    parser.add_argument("--model", required=True, help="folder, hub id, smollm2 or tiny-llama")
    parser.add_argument("--format", default="2x8g8", help=", ".join(FORMATS) + "; default 2x8g8")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--seed", type=int, default=0, help="of the k-means start; default 0")
    parser.add_argument("--out", required=True, help="folder of the checkpoint")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Quantize and save."""
    import torch

    from pvopt.checkpoints import save, storage_report
    from pvopt.llm import load_model
    from pvopt.quantize import quantize_
    from pvopt.tuning import parse_format

    parametrization = parse_format(args.format)
    loaded = load_model(args.model, dtype=getattr(torch, args.dtype))
    start = time.perf_counter()
    weights = quantize_(loaded.model, parametrization, seed=args.seed, progress=names_bar)
    seconds = time.perf_counter() - start
    metadata = {"model": args.model, "format": args.format, "seed": args.seed}
    save(args.out, loaded.model, weights, tokenizer=loaded.tokenizer, metadata=metadata)
    report = storage_report(args.out)
    print(
        f"quantized {len(weights)} weights to {report.bits_per_weight_16:.3f} bits per weight "
        f"in {seconds:.1f} s: {args.out} ({report.file_bytes / 1e6:.1f} MB)"
    )
    return 0
