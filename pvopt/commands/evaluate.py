"""``pvopt eval``: perplexity on a text, with everything it depends on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .common import (
    add_computation,
    choose_device,
    note,
    open_source,
    original_of,
    prepare_dtype,
    shortened,
    warn_of_seen,
)
from .lm_eval_tasks import Tasks
from .tables import print_table, progress_bar

if TYPE_CHECKING:
    import torch

    from pvopt.llm import LanguageModel

__all__ = ["add_parser", "run"]

_CONTEXT = 512


def add_parser(commands: Any, help: str) -> None:
    """Add the command to the command line."""
    from pvopt.llm import PARTS

    parser = commands.add_parser("eval", help=help)
    parser.example = "pvopt eval --checkpoint runs/tuned --text test.txt --context 2048"
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder, GGUF file, hub id, smollm2 or tiny-llama")
    source.add_argument("--checkpoint", help="folder written by quantize or tune")
    group = parser.add_argument_group("what is measured")
    group.add_argument("--text", default="pydoc", help="file, hub:NAME or pydoc (default)")
    group.add_argument(
        "--part",
        default="all",
        choices=PARTS,
        help="of the text, cut as tune cuts it; default all, as published perplexities do",
    )
    group.add_argument(
        "--context",
        type=int,
        help=f"tokens per window; default {_CONTEXT}, or the model's positions",
    )
    group.add_argument("--windows", type=int, help="at most so many; default all")
    group.add_argument(
        "--original",
        metavar="MODEL",
        help="compare a checkpoint with this model: divergence, agreement on the likeliest token; "
        "default: the one it was made of",
    )
    group.add_argument(
        "--no-original", action="store_true", help="do not load the original of a checkpoint"
    )
    group.add_argument(
        "--tasks",
        metavar="A,B",
        help="tasks of the package lm-eval, such as arc_easy,piqa, or files of your own "
        "(task.yaml), in place of a text; --windows limits the examples of each",
    )
    add_computation(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, evaluate, print."""
    from pvopt.llm import (
        Comparison,
        TextPart,
        check_length,
        compare,
        max_positions,
        perplexity,
    )
    from pvopt.tuning import autocast_dtype

    if args.original is not None and args.no_original:
        raise ValueError("--original does not go with --no-original")
    if args.windows is not None and args.windows < 1:
        raise ValueError(f"--windows must be at least 1, got {args.windows}")
    tasks = None if args.tasks is None else Tasks.find(args.tasks)
    text = None if tasks is not None else TextPart.load(args.text, args.part)
    device = choose_device(args.device)
    loaded, _, metadata = open_source(args.model, args.checkpoint, device)
    dtype = prepare_dtype(args.dtype, loaded.model, metadata)
    as_tuned = ", as it was tuned" if args.dtype == "auto" and "settings" in metadata else ""
    if text is None:
        assert tasks is not None
        rows = tasks.measure(loaded, cast=autocast_dtype(dtype), limit=args.windows)
        print_table(["task", "measure", "value"], rows)
        return 0
    positions = max_positions(loaded.model) or _CONTEXT
    context = min(_CONTEXT, positions) if args.context is None else args.context
    check_length(loaded.model, "--context", context)
    warn_of_seen(text, metadata)
    tokens = loaded.encode(text.text)
    if not 2 <= context <= len(tokens):
        raise ValueError(
            f"--context must be in 2..{len(tokens)}, the tokens of the text, got {context}"
        )
    measure = {
        "context_length": context,
        "max_windows": args.windows,
        "autocast_dtype": autocast_dtype(dtype),
    }
    original = _original(args, metadata, loaded, device)
    with _bar("evaluate") as advance:
        if original is None:
            result = perplexity(loaded.model, tokens, progress=advance, **measure)
        else:
            result = compare(loaded.model, original.model, tokens, progress=advance, **measure)
    print(f"perplexity {result.perplexity:.5g} ({result.nll_per_token:.5f} nats per token)")
    print(
        f"{args.text}, {args.part} text: {result.windows} windows of {result.context_length} "
        f"tokens, {result.tokens} predictions, {dtype}{as_tuned}"
    )
    if original is not None and isinstance(result, Comparison):
        print(
            f"beside the original {original.source}: divergence {result.divergence:.5f} nats per "
            f"token, the same likeliest token at {result.agreement:.2%} of {result.positions} "
            "positions"
        )
    return 0


def _original(
    args: argparse.Namespace, metadata: dict[str, Any], loaded: LanguageModel, device: torch.device
) -> LanguageModel | None:
    """Load what a checkpoint is compared with, if it can be found."""
    from pvopt.llm import load_model, output_head

    if args.no_original or (args.original is None and args.checkpoint is None):
        return None
    dtype = next(p.dtype for p in loaded.model.parameters() if p.is_floating_point())
    try:
        name = args.original or original_of(args.checkpoint, metadata, "--original")
        original = load_model(name, dtype=dtype, device=device)
        sizes = [len(output_head(found.model).weight) for found in (loaded, original)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"{name} predicts {sizes[1]} tokens, the model {sizes[0]}")
    except (ValueError, TypeError, OSError, ImportError) as error:
        if args.original is not None:
            raise
        note(f"not compared with the original: {shortened(str(error), 300)}")
        return None
    return original


@contextmanager
def _bar(name: str) -> Any:
    """Give a function that moves a bar over windows."""
    with progress_bar(desc=name, unit="window") as bar:

        def advance(done: int, windows: int) -> None:
            bar.total = windows
            bar.update(done - bar.n)

        shown: Callable[[int, int], None] = advance
        yield shown
