"""``pvopt export``: write a checkpoint for other programs."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any

from .common import note, remember_command

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pvopt import QuantizedWeights
    from pvopt.formats import Checkpoint, Writer

__all__ = ["add_parser", "run"]

_DTYPES = ("float32", "float16", "bfloat16")


def add_parser(commands: Any, help: str) -> None:
    """Add the command to the command line."""
    from pvopt.formats import FORMATS

    formats = sorted(w.name for w in FORMATS.writers if w.name != "native")
    parser = commands.add_parser("export", help=help)
    parser.example = "pvopt export --checkpoint runs/tuned --to compressed-tensors --out served"
    parser.add_argument(
        "--checkpoint", required=True, help="folder written by quantize or tune, or a run"
    )
    parser.add_argument("--to", required=True, choices=formats, help="the format")
    parser.add_argument("--out", required=True, help="folder to write; an older export is replaced")
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="of scales and of all weights that are not quantized; default: that of the model",
    )
    parser.add_argument(
        "--blocks",
        metavar="TYPES",
        help="of gguf: types that may be used, preferred ones first (TQ2_0,Q4_0); default: all, "
        "those of fewer bits first",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, convert, write, say how to go on."""
    import torch

    from pvopt import formats
    from pvopt.tuning import find_checkpoint

    to = f"{args.to}:{args.blocks}" if args.blocks else args.to
    writer = formats.FORMATS.writer(to)
    formats.check_place(args.out, to)
    folder = find_checkpoint(args.checkpoint)
    checkpoint = formats.load(folder)
    dtype = functools.reduce(torch.promote_types, _dtypes(checkpoint.model))  # it holds them all
    if args.dtype:
        dtype = getattr(torch, args.dtype)
    weights = _in_one_dtype(checkpoint, dtype, writer)
    tokenizer = _tokenizer(folder)
    metadata = {**checkpoint.metadata}
    remember_command(metadata, args)
    out = formats.save(
        args.out,
        weights.model,
        weights,
        format=to,
        tokenizer=tokenizer,
        metadata=metadata,
        card=True,
    )
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {args.to}, {size:,} bytes, {str(dtype).removeprefix('torch.')}")
    print(f"next: {writer.loading(out)}")
    return 0


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    """Return the dtypes of a model's weights."""
    return {t.dtype for t in model.state_dict().values() if t.is_floating_point()}


def _in_one_dtype(checkpoint: Checkpoint, dtype: torch.dtype, writer: Writer) -> QuantizedWeights:
    """Return model and weights rounded to a dtype, in that one or the one they are decoded in.

    What was rounded is said.
    """
    import torch

    from pvopt import QuantizedWeights

    def is_wider(kind: torch.dtype) -> bool:
        return torch.promote_types(kind, dtype) != dtype

    others = any(map(is_wider, _dtypes(checkpoint.model)))
    computed = writer.decodes_in or dtype
    prepared = {name: writer.prepared(rep) for name, rep in checkpoint.weights.items()}
    reps = {n: rep.to(dtype=dtype).to(dtype=computed) for n, rep in prepared.items()}
    if others or any(is_wider(rep.dtype) for rep in prepared.values()):
        pairs = ((rep.decode(), reps[name].decode()) for name, rep in checkpoint.weights.items())
        changes = [float((b - a).norm() / a.norm().clamp_min(1e-30)) for a, b in pairs]
        more = ", and so were all other weights" if others else ""
        note(
            f"values were rounded to {dtype}{more}: quantized ones change by at most "
            f"{max(changes):.1e} of their norm"
        )
    model: Any = checkpoint.model.to(dtype).to(computed)
    model.config.dtype = computed
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
