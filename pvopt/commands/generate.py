"""``pvopt generate``: continue a prompt with a quantized or a dense model."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from .common import add_computation, choose_device, note, open_source, prepare_dtype

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pvopt import QuantizedWeights
    from pvopt.llm import LanguageModel

__all__ = ["add_parser", "pack", "run"]


def add_parser(commands: Any, help: str) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser("generate", help=help)
    parser.example = 'pvopt generate --checkpoint runs/tuned --prompt "Python is" --tokens 40'
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="folder written by quantize or tune")
    source.add_argument("--model", help="folder, GGUF file, hub id, smollm2 or tiny-llama")
    parser.add_argument("--prompt", required=True, help="text to continue")
    group = parser.add_argument_group("text")
    group.add_argument(
        "--chat",
        action="store_true",
        help="the prompt is a question, spelled out by the model's chat template",
    )
    group.add_argument("--tokens", type=int, default=64, help="new tokens at most; default 64")
    group.add_argument(
        "--temperature", type=float, default=0.0, help="of sampling; default 0, the likeliest token"
    )
    group.add_argument("--seed", type=int, default=0, help="of sampling; default 0")
    add_computation(parser)
    parser.add_argument(
        "--dense",
        action="store_true",
        help="decode the weights of a checkpoint once (faster, in the memory of a dense model)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, generate, print prompt and continuation while they come."""
    import torch

    from pvopt.core.draws import SEEDS
    from pvopt.core.validation import check_integer
    from pvopt.llm import check_length
    from pvopt.tuning import autocast_dtype, computing_dtype

    if args.tokens < 1:
        raise ValueError(f"--tokens must be at least 1, got {args.tokens}")
    if not 0 <= args.temperature < float("inf"):
        raise ValueError(f"--temperature must be finite and not negative, got {args.temperature}")
    check_integer("--seed", args.seed, *SEEDS)
    device = choose_device(args.device)
    loaded, weights, metadata = open_source(args.model, args.checkpoint, device)
    tokens = _prompt(loaded, args.prompt, args.chat)[None].to(device)
    if tokens.shape[1] == 0:
        raise ValueError("--prompt must hold at least one token")
    total = tokens.shape[1] + args.tokens
    check_length(loaded.model, f"--tokens and the {tokens.shape[1]} tokens of --prompt", total)
    model: Any = loaded.model.eval()
    cast = autocast_dtype(computing_dtype(args.dtype, model, metadata))
    with (
        torch.random.fork_rng(devices=[]),
        torch.autocast(device.type, cast, enabled=cast is not None),
    ):
        if weights is not None and not args.dense:
            pack(model, weights, tokens)
        del weights  # the layers have copies
        prepare_dtype(args.dtype, model, metadata)
        torch.manual_seed(args.seed)
        start = time.perf_counter()
        found = _generate(args, model, loaded.tokenizer, tokens)
        seconds = time.perf_counter() - start
    count = found.shape[1] - tokens.shape[1]
    print(
        f"pvopt: {count} tokens in {seconds:.2f} s, {count / seconds:.1f} tokens/s", file=sys.stderr
    )
    return 0


def pack(model: nn.Module, weights: QuantizedWeights, tokens: Tensor) -> None:
    """Replace layers by packed ones, where that cannot change what the model computes.

    Whether it did is seen on some tokens: models may do to a layer's weight whatever they like. If
    the logits differ, the dense weights are put back.

    Args:
        model: dense, in evaluation mode.
        weights: its quantized weights.
        tokens: ``[1, length]`` what the model is run on.
    """
    import torch

    from pvopt.layers import dense_reasons, to_dense, to_quantized

    reasons = dense_reasons(model, weights)
    packed = {name: rep for name, rep in weights.items() if name not in reasons}
    if reasons:
        reason = next(iter(reasons.values()))
        note(f"{len(reasons)} of {len(weights)} weights are decoded: {reason}")
    before = {name: weights.parameter(name) for name in packed}
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits.float()
        to_quantized(model, packed)
        try:
            found = model(input_ids=tokens, use_cache=False).logits.float()
            close = bool((found - expected).norm() <= 0.02 * expected.norm())
        except Exception:  # the model expects a plain layer
            close = False
    if not close:
        to_dense(model)
        for name, parameter in before.items():  # as the model has them: some change their weights
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, parameter)
        note("all weights are decoded: this model computes something else with packed layers")


def _prompt(loaded: LanguageModel, prompt: str, chat: bool) -> Tensor:
    if not chat:
        return loaded.encode(prompt)
    import torch

    tokenizer: Any = loaded.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("--chat needs a chat template, which this model's tokenizer has not")
    messages = [{"role": "user", "content": prompt}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever templates raise
        raise ValueError(f"--chat: the model's chat template cannot be used ({error})") from error
    # The template spells out the special tokens.
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False), dtype=torch.long)


def _generate(args: argparse.Namespace, model: Any, tokenizer: Any, tokens: Tensor) -> Tensor:
    import torch
    from transformers import TextStreamer

    sampling: dict[str, Any] = {"do_sample": False}
    if args.temperature > 0:
        # All tokens may be drawn: the defaults of a model's own settings cut some off.
        sampling = {"do_sample": True, "temperature": args.temperature, "top_k": 0, "top_p": 1.0}
    return model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=args.tokens,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        streamer=TextStreamer(tokenizer, skip_prompt=args.chat, skip_special_tokens=True),
        **sampling,
    )
