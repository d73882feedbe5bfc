"""Sequences of tokens to calibrate on, out of a text or of conversations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvopt.llm import LanguageModel, check_length, max_positions

__all__ = ["Sequences", "sequences_of"]

_LENGTH = 1024


@dataclass(frozen=True, eq=False)
class Sequences:
    """Tokens as :func:`calibrate_` takes them.

    Args:
        tokens: ``[sequences, length]``.
        masks: ``[sequences, length]``, 0 for padding; None for none.

    Example:
        >>> import torch
        >>> from pvopt.calibration import Sequences
        >>> Sequences(torch.zeros(2, 3)).count
        6
    """

    tokens: Tensor
    masks: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of tokens that are no padding."""
        return self.tokens.numel() if self.masks is None else int(self.masks.sum())


def sequences_of(
    model: LanguageModel,
    text: str,
    *,
    length: int | None = None,
    tokens: int = 65536,
    chat: bool = False,
) -> Sequences:
    """Cut a text into sequences, or spell out conversations by the model's chat template.

    Args:
        model: with its tokenizer.
        text: running text; with ``chat``, JSON in each line: ``{"messages": [{"role": ...,
            "content": ...}, ...]}``.
        length: tokens of a sequence; None for 1024, or the model's positions if these are fewer.
            Longer conversations are cut, shorter ones filled up.
        tokens: most tokens in all, padding included.
        chat: whether the text holds conversations.

    Returns:
        The sequences.

    Raises:
        ValueError: if the model has fewer positions, the text fills no sequence, or a line is no
            conversation.

    Example:
        >>> from pvopt.calibration import sequences_of
        >>> from pvopt.llm import load_model
        >>> model = load_model("tiny-llama")
        >>> sequences_of(model, "so long, and thanks", length=4).tokens.shape
        torch.Size([4, 4])
    """
    if length is None:
        length = min(_LENGTH, max_positions(model.model) or _LENGTH)
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")
    if not 1 <= length <= tokens:
        raise ValueError(f"length must be in 1..{tokens}, got {length}")
    check_length(model.model, "length", length)
    if chat:
        return _conversations(model, text, length, tokens // length)
    found = model.encode(text)
    count = min(len(found), tokens) // length
    if not count:
        raise ValueError(
            f"the text to calibrate on has {len(found)} tokens, less than one sequence of "
            f"{length}: take a longer one or a smaller length"
        )
    return Sequences(found[: count * length].view(count, length))


def _conversations(model: LanguageModel, text: str, length: int, count: int) -> Sequences:
    tokenizer: Any = model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("chat needs a chat template, which this model's tokenizer has not")
    rows = []
    for number, line in enumerate(filter(str.strip, text.splitlines()), start=1):
        if len(rows) == count:
            break
        try:
            messages = json.loads(line)["messages"]
            spelled = tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # whatever templates raise
            raise ValueError(
                f'line {number} of the text must be {{"messages": [...]}} as the chat template '
                f"takes it: {error}"
            ) from error
        # The template spells out the special tokens.
        rows.append(tokenizer.encode(spelled, add_special_tokens=False)[:length])
    rows = [row for row in rows if row]
    if not rows:
        raise ValueError("the text to calibrate on holds no conversation")
    masks = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    padding = tokenizer.pad_token_id or tokenizer.eos_token_id or 0
    tokens = torch.tensor([row + [padding] * (length - len(row)) for row in rows])
    return Sequences(tokens, None if bool(masks.all()) else masks)
