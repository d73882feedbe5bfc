"""``pvopt eval``: perplexity on a text, with everything it depends on."""

from __future__ import annotations

import argparse
from typing import Any

from .common import PARTS, add_dtype, prepare_dtype, progress_bar, text_part

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("eval", help="measure perplexity on a text")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder, hub id, smollm2 or tiny-llama")
    source.add_argument("--checkpoint", help="folder written by quantize or tune")
    parser.add_argument("--text", default="pydoc", help="file, hub:NAME or pydoc (default)")
    parser.add_argument(
        "--part", default="held-out", choices=PARTS, help="of the text; default held-out"
    )
    parser.add_argument("--context", type=int, default=512, help="tokens per window; default 512")
    parser.add_argument("--windows", type=int, help="at most so many; default all")
    add_dtype(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, evaluate, print."""
    from pvopt.llm import load_model, load_text, perplexity
    from pvopt.tuning import autocast_dtype, load_student

    text = text_part(load_text(args.text), args.part)
    if args.checkpoint is None:
        loaded, metadata = load_model(args.model), {}
    else:
        loaded, _, metadata = load_student(args.checkpoint)
    dtype = prepare_dtype(args.dtype, loaded.model, metadata)
    as_tuned = ", as it was tuned" if args.dtype == "auto" and "settings" in metadata else ""
    tokens = loaded.encode(text)
    with progress_bar(desc="evaluate", unit="window") as bar:

        def advance(done: int, windows: int) -> None:
            bar.total = windows
            bar.update(done - bar.n)

        result = perplexity(
            loaded.model,
            tokens,
            context_length=args.context,
            max_windows=args.windows,
            autocast_dtype=autocast_dtype(dtype),
            progress=advance,
        )
    print(f"perplexity {result.perplexity:.5g} ({result.nll_per_token:.5f} nats per token)")
    print(
        f"{args.text}, {args.part} text: {result.windows} windows of {result.context_length} "
        f"tokens, {result.tokens} predictions, {dtype}{as_tuned}"
    )
    return 0
