"""``pvopt export``: write a checkpoint for other programs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .common import note

if TYPE_CHECKING:
    import torch

    from pvopt.formats import Checkpoint

__all__ = ["add_parser", "run"]

# How to load a folder of each format.
_NEXT = {
    "aqlm": 'transformers.AutoModelForCausalLM.from_pretrained("{folder}")',
    "compressed-tensors": "vllm serve {folder}",
    "dense": 'transformers.AutoModelForCausalLM.from_pretrained("{folder}")',
}
_DTYPES = ("float32", "float16", "bfloat16")


def add_parser(commands: Any, help: str) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("export", help=help)
    parser.example = "pvopt export --checkpoint runs/tuned --to compressed-tensors --out served"
    parser.add_argument(
        "--checkpoint", required=True, help="folder written by quantize or tune, or a run"
    )
    parser.add_argument("--to", required=True, choices=sorted(_NEXT), help="the format")
    parser.add_argument("--out", required=True, help="folder to write; an older export is replaced")
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="of scales and of all weights that are not quantized; default: that of the scales",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, convert, write, say how to go on."""
    import torch

    from pvopt import formats
    from pvopt.tuning import find_checkpoint

    folder = find_checkpoint(args.checkpoint)
    checkpoint = formats.load(folder)
    dtype = getattr(torch, args.dtype) if args.dtype else _common_dtype(checkpoint)
    weights = _in_one_dtype(checkpoint, dtype)
    tokenizer = _tokenizer(folder)
    out = formats.save(args.out, weights.model, weights, format=args.to, tokenizer=tokenizer)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {args.to}, {size:,} bytes, {str(dtype).removeprefix('torch.')}")
    print(f"next: {_NEXT[args.to].format(folder=out)}")
    return 0


def _common_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the widest dtype of codebooks and scales."""
    return max((rep.dtype for rep in checkpoint.weights.values()), key=lambda kind: kind.itemsize)


def _in_one_dtype(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Return model and weights with everything floating in one dtype; say what was rounded."""
    from pvopt import QuantizedWeights

    model = checkpoint.model.to(dtype)
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.dtype = dtype
    reps, change = {}, 0.0
    for name, rep in checkpoint.weights.items():
        reps[name] = rep.to(dtype=dtype)
        before, after = rep.decode(), reps[name].decode().to(rep.dtype)
        change = max(change, float((after - before).norm() / before.norm().clamp_min(1e-30)))
    if change > 0:
        note(
            f"values were rounded to {dtype}: weights change by at most {change:.1e} of their norm"
        )
    weights = QuantizedWeights(model, reps)
    weights.write_()
    return weights


def _tokenizer(folder: Any) -> Any:
    from pvopt.formats import CheckpointError, load_tokenizer

    try:
        return load_tokenizer(folder)
    except CheckpointError:
        note("the checkpoint has no tokenizer, so there is none in the export")
        return None
