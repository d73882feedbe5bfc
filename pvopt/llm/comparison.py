"""How near a quantized model is to its original: divergence and agreement on a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pvopt.evaluation_mode import evaluation_mode
from pvopt.llm.chunked_loss import chunked_cross_entropy
from pvopt.llm.evaluation import PerplexityResult, cut_windows, exponential
from pvopt.llm.output_head import run_to_head

__all__ = ["Comparison", "compare"]

# Logits that exist at once, of each model.
_CHUNK_LOGITS = 2**24


@dataclass(frozen=True)
class Comparison(PerplexityResult):
    """The perplexity of a model, and how near it is to another one on the same windows.

    Attributes:
        divergence: mean Kullback-Leibler divergence of the next-token distributions, in nats.
        agreement: share of the positions at which both think the same token the likeliest.

    Example:
        >>> from pvopt.llm import Comparison
        >>> Comparison(12.0, 2.48, 6, 2, 4, divergence=0.5, agreement=0.75).positions
        8
    """

    divergence: float
    agreement: float

    @property
    def positions(self) -> int:
        """Positions compared: all of every window."""
        return self.windows * self.context_length


@torch.no_grad()
def compare(
    model: nn.Module,
    original: nn.Module,
    tokens: Tensor | Sequence[int],
    *,
    context_length: int,
    max_windows: int | None = None,
    autocast_dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    r"""Compare two language models on the windows that :func:`perplexity` reads, each read once.

    .. math::
        \frac{1}{N L} \sum_{n,l} \operatorname{KL}(p_{nl} \,\|\, q_{nl}), \qquad
        \frac{1}{N L} \sum_{n,l} [\arg\max p_{nl} = \arg\max q_{nl}]

    with the distributions p of the original and q of the model at all N L positions.

    Args:
        model: a causal language model.
        original: another one with the same vocabulary.
        tokens: token ids of one text, [tokens], integers.
        context_length: tokens per window, at least 2.
        max_windows: stop after that many windows; None compares all.
        autocast_dtype: run both under autocast with this dtype; None computes in their own.
        progress: called after each window with the windows done and the windows in all.

    Returns:
        Divergence, agreement, and what :func:`perplexity` returns for the model.

    Raises:
        ValueError: a setting is out of range, the tokens do not fill one window, or the
            vocabularies differ.

    Example:
        >>> from pvopt.llm import compare, load_model
        >>> model = load_model("tiny-llama").model
        >>> near = compare(model, model, range(100), context_length=50)
        >>> near.divergence, near.agreement, near.tokens, near.positions
        (0.0, 1.0, 98, 100)
    """
    windows = cut_windows(tokens, context_length, max_windows)
    device = next(model.parameters()).device
    divergence, agreed, total = 0.0, 0, 0.0
    autocast = torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None)
    with autocast, evaluation_mode(model), evaluation_mode(original):
        for number, row in enumerate(windows, start=1):
            ids = row[None].to(device)
            pairs = [run_to_head(m, ids) for m in (original, model)]
            sizes = [len(head.weight) for _, head in pairs]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"model and original must have the same vocabulary, got {sizes[1]} and "
                    f"{sizes[0]} tokens"
                )
            chunk = max(1, _CHUNK_LOGITS // sizes[0])
            for start in range(0, context_length, chunk):
                p, q = (
                    head.logits(hidden[0, start : start + chunk]).float().log_softmax(-1)
                    for hidden, head in pairs
                )
                divergence += float((p.exp() * (p - q)).sum(dtype=torch.float64))
                agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
            hidden, head = pairs[1]
            # As the perplexity has it, to the last bit: logits above may be rounded otherwise.
            loss = chunked_cross_entropy(hidden[0, :-1], head, ids[0, 1:])
            total += float(loss) * (context_length - 1)
            if progress is not None:
                progress(number, len(windows))
    predictions = len(windows) * (context_length - 1)
    nll = total / predictions
    return Comparison(
        perplexity=exponential(nll),
        nll_per_token=nll,
        tokens=predictions,
        windows=len(windows),
        context_length=context_length,
        divergence=divergence / windows.numel(),
        agreement=agreed / windows.numel(),
    )
