"""``pvopt generate``: continue a prompt with a quantized or a dense model."""

from __future__ import annotations

import argparse
from typing import Any

from .common import add_dtype, prepare_dtype

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("generate", help="continue a prompt")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="folder written by quantize or tune")
    source.add_argument("--model", help="folder, hub id, smollm2 or tiny-llama")
    parser.add_argument("--prompt", required=True, help="text to continue")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens at most; default 64")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="of sampling; default 0, the likeliest token"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling; default 0")
    parser.add_argument(
        "--dense",
        action="store_true",
        help="decode the weights of a checkpoint once (faster, in the memory of a dense model)",
    )
    add_dtype(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, generate, print prompt and continuation."""
    import torch

    from pvopt.layers import to_quantized
    from pvopt.llm import load_model
    from pvopt.tuning import autocast_dtype, load_student

    if args.tokens < 1:
        raise ValueError(f"--tokens must be at least 1, got {args.tokens}")
    if not 0 <= args.temperature < float("inf"):
        raise ValueError(f"--temperature must be finite and not negative, got {args.temperature}")
    if args.checkpoint is None:
        loaded, metadata = load_model(args.model), {}
    else:
        loaded, weights, metadata = load_student(args.checkpoint)
        if not args.dense:
            to_quantized(loaded.model, weights)
        del weights  # the layers have copies
    model: Any = loaded.model.eval()
    tokenizer = loaded.tokenizer
    autocast = autocast_dtype(prepare_dtype(args.dtype, model, metadata))
    tokens = loaded.encode(args.prompt)[None]
    if tokens.shape[1] == 0:
        raise ValueError("--prompt must hold at least one token")
    sampling: dict[str, Any] = {"do_sample": False}
    if args.temperature > 0:
        # All tokens may be drawn: the defaults of a model's own settings cut some off.
        sampling = {"do_sample": True, "temperature": args.temperature, "top_k": 0, "top_p": 1.0}
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", autocast, autocast is not None):
        torch.manual_seed(args.seed)
        found = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=args.tokens,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            **sampling,
        )
    print(tokenizer.decode(found[0], skip_special_tokens=True))
    return 0
