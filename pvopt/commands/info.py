"""``pvopt info``: what a checkpoint holds and what it takes."""

from __future__ import annotations

import argparse
from typing import Any

from .tables import print_table

__all__ = ["add_parser", "run"]


def add_parser(commands: Any, help: str) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("info", help=help)
    parser.example = "pvopt info --checkpoint runs/tuned"
    parser.add_argument("--checkpoint", required=True, help="folder written by quantize or tune")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a table of all weights and the sums."""
    from pvopt.formats import FORMATS, storage_report
    from pvopt.tuning import find_checkpoint

    folder = find_checkpoint(args.checkpoint)
    if folder.is_dir() or FORMATS.reads_file(folder):
        kind = FORMATS.reader(folder).name
        if kind != "native":
            raise ValueError(f"{folder} is in the format {kind}, info shows our own checkpoints")
    report = storage_report(folder)
    rows = [
        [
            weight.name,
            "x".join(map(str, weight.shape)),
            weight.scheme.name,
            f"{weight.code_bytes:,}",
            f"{weight.value_bytes:,}",
            f"{weight.bits_per_weight:.3f}",
            f"{weight.bits_per_weight_16:.3f}",
        ]
        for weight in report.weights
    ]
    print_table(
        ["weight", "shape", "format", "code bytes", "value bytes", "bits stored", "16-bit values"],
        rows,
    )
    print()
    print_table(
        ["bits per weight", "weights", "as stored", "16-bit values"],
        [
            [
                "quantized: codes, codebooks, scales",
                f"{report.count:,}",
                f"{report.bits_per_weight:.3f}",
                f"{report.bits_per_weight_16:.3f}",
            ],
            [
                "all, with embeddings and other weights",
                f"{report.count + report.other_count:,}",
                f"{report.total_bits_per_weight:.3f}",
                f"{report.total_bits_per_weight_16:.3f}",
            ],
        ],
    )
    print(f"\n{folder}: {report.file_bytes:,} bytes of tensors")
    return 0
