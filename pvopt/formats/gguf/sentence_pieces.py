"""Tokenizers as Llama 2 has one: pieces of text, joined by their scores, and bytes for the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["BYTE", "UNKNOWN", "adds_space", "merges_of", "model_of", "scores_of"]

UNKNOWN, BYTE = 2, 6
_SPACE = "▁"
# The longest pieces in use are runs of 16 spaces; the merges of one take a square of its length.
_LONGEST = 256
_LOWEST = -1e6
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


def merges_of(tokens: Sequence[str], scores: Sequence[float]) -> list[list[str]]:
    """Return the pairs that make a piece, those of the highest scores first.

    Raises:
        ValueError: if a piece is longer than any in use.
    """
    known = {token: number for number, token in enumerate(tokens)}
    found = []
    for token, score in zip(tokens, scores, strict=True):
        if len(token) > _LONGEST:
            raise ValueError(f"the tokenizer has a piece of {len(token)} characters")
        for place in range(1, len(token)):
            left, right = token[:place], token[place:]
            if left in known and right in known:
                found.append((-score, known[left], known[right], [left, right]))
    return [pair for *_, pair in sorted(found)]


def scores_of(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> list[float]:
    """Return scores by which the same pairs are joined first."""
    first: dict[str, int] = {}
    for place, pair in enumerate(merges):
        first.setdefault("".join(pair), place)
    return [float(-first[token]) if token in first else _LOWEST for token in tokens]


def model_of(unknown: str | None, prefix: bool) -> dict[str, Any]:
    """Return what ``tokenizer.json`` has beside vocabulary and merges.

    Args:
        unknown: the token for what has no other.
        prefix: whether a text begins as if a space was before it.
    """
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [_PREPEND] * prefix + [_REPLACE]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
    }


def adds_space(content: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer puts a space before a text.

    Args:
        content: of ``tokenizer.json``.

    Raises:
        ValueError: if it changes texts in another way.
    """
    cut, normalizer = content["pre_tokenizer"], content["normalizer"]
    if cut is None and normalizer is not None:
        steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
        if steps in ([_REPLACE], [_PREPEND, _REPLACE]):
            return len(steps) == 2
    # The same but for texts that begin with a space.
    whole = {"type": "Metaspace", "replacement": _SPACE, "split": False}
    if normalizer is None and cut is not None and whole.items() <= cut.items():
        return cut["prepend_scheme"] != "never"
    raise ValueError(f"the tokenizer changes texts in a way that is not known: {json.dumps(cut)}")
