"""Perplexity of a language model on a text, with the convention stated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pvopt.evaluation_mode import evaluation_mode
from pvopt.llm.distillation import language_loss


@dataclass(frozen=True)
class PerplexityResult:
    """A perplexity and what it was measured on.

    Attributes:
        perplexity: ``exp(nll_per_token)``.
        nll_per_token: mean negative log-likelihood of the predicted tokens, in nats.
        tokens: predicted tokens, ``windows * (context_length - 1)``.
        windows: windows evaluated.
        context_length: tokens per window.
    """

    perplexity: float
    nll_per_token: float
    tokens: int
    windows: int
    context_length: int


def perplexity(
    model: nn.Module,
    tokens: Tensor | Sequence[int],
    *,
    context_length: int,
    max_windows: int | None = None,
    batch_size: int = 1,
    autocast_dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    r"""Measure the perplexity of a causal language model.

    .. math::
        \exp\left( -\frac{1}{N (L-1)} \sum_{n=1}^{N} \sum_{l=1}^{L-1}
        \log p(x_{n,l+1} \mid x_{n,1}, \dots, x_{n,l}) \right)

    Convention: the tokens are cut, from the start, into N non-overlapping windows of L =
    `context_length` tokens; a shorter rest is dropped. Each window is read on its own and predicts
    its tokens 2 to L from the ones before them in the same window; its first token is never
    predicted. All N (L - 1) predictions weigh the same. Published 2-bit results (GPTQ, AQLM,
    QuIP#, PV-Tuning) use this convention on the WikiText-2 test set; numbers depend on L.

    The model is switched to evaluation mode meanwhile, and each of its modules is put back.

    Args:
        model: a causal language model.
        tokens: token ids of one text, [tokens], integers.
        context_length: tokens per window, at least 2.
        max_windows: stop after that many windows; None evaluates all.
        batch_size: windows run at once.
        autocast_dtype: run under autocast with this dtype; None computes in the model's own.
        progress: called after each batch with the windows done and the windows in all.

    Returns:
        The perplexity (infinite where it overflows) and its settings.

    Raises:
        ValueError: a setting is out of range, or the tokens do not fill one window.
        TypeError: `tokens` are not integers in one dimension.

    Example:
        >>> from pvopt.llm import load_model, perplexity
        >>> language_model = load_model("tiny-llama")
        >>> tokens = language_model.encode("So long, and thanks for all the fish.")
        >>> result = perplexity(language_model.model, tokens, context_length=12)
        >>> result.windows, result.tokens
        (3, 33)
    """
    windows = cut_windows(tokens, context_length, max_windows)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    device = next(model.parameters()).device
    total, predictions = 0.0, context_length - 1  # a Python float: sums in float64
    autocast = torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None)
    # Not inference_mode: what a model caches under it could not be used in training afterwards.
    with torch.no_grad(), autocast, evaluation_mode(model):
        for start in range(0, len(windows), batch_size):
            batch = windows[start : start + batch_size].to(device)
            loss = language_loss(model, batch)
            total += float(loss) * len(batch) * predictions
            if progress is not None:
                progress(start + len(batch), len(windows))
    count = len(windows) * predictions
    nll = total / count
    return PerplexityResult(exponential(nll), nll, count, len(windows), context_length)


def exponential(value: float) -> float:
    """Return its exponential, infinite where that overflows."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def native_autocast_dtype(device: torch.device | str = "cpu") -> torch.dtype | None:
    """Tell which autocast dtype a device is faster in than in float32.

    bfloat16 pays off where the hardware multiplies it: CUDA devices with bfloat16 units, CPUs with
    AMX or AVX512-BF16. Elsewhere it is emulated and several times slower than float32.

    Args:
        device: a device this process can use.

    Returns:
        ``torch.bfloat16``, or None where float32 is the better choice or nothing is known.

    Example:
        >>> import torch
        >>> from pvopt.llm import native_autocast_dtype
        >>> native_autocast_dtype("cpu") in (torch.bfloat16, None)
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = _cpu_multiplies_bfloat16()
    else:
        native = False
    return torch.bfloat16 if native else None


def _cpu_multiplies_bfloat16() -> bool:
    # Older versions of torch cannot tell; float32 is the safe answer there.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def cut_windows(
    tokens: Tensor | Sequence[int], context_length: int, max_windows: int | None = None
) -> Tensor:
    """Cut tokens into windows, [windows, context_length], as `perplexity` reads them.

    Raises:
        ValueError: a setting is out of range, or the tokens do not fill one window.
        TypeError: `tokens` are not integers in one dimension.
    """
    tokens = torch.as_tensor(tokens)
    if tokens.ndim != 1 or tokens.is_floating_point() or tokens.is_complex():
        raise TypeError(
            f"tokens must be integers of shape [tokens], got {tokens.dtype} of shape "
            f"{list(tokens.shape)}"
        )
    if context_length < 2:
        raise ValueError(f"context_length must be at least 2, got {context_length}")
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"max_windows must be at least 1 or None, got {max_windows}")
    count = len(tokens) // context_length
    if not count:
        raise ValueError(
            f"tokens must fill a window of context_length={context_length} tokens, "
            f"got {len(tokens)} tokens"
        )
    return tokens[: count * context_length].long().view(count, context_length)[:max_windows]
