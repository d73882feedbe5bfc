"""Tokenizers in GGUF: bytes or pieces of a text, joined by merges."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from . import sentence_pieces

__all__ = ["tokenizer_of", "tokenizer_settings"]

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_DIGITS = {"type": "Digits", "individual_digits": True}


def _bytes(regex: bool) -> dict[str, Any]:
    content = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {**content, "use_regex": regex}


def _split(pattern: str) -> dict[str, Any]:
    split = {"pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [{"type": "Split", **split}, _bytes(False)]}


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

#: How texts are cut before merges, by the name that llama.cpp knows: in the form of tokenizer.json.
_CUTS: dict[str, dict[str, Any]] = {
    "gpt-2": _bytes(True),
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _bytes(True)]},
    "llama-bpe": _split(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"),
    "qwen2": _split(rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"),
}
_ALIASES = {"default": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}


def tokenizer_settings(tokenizer: Any, vocabulary: int) -> dict[str, Any]:
    """Return the settings of a file, without ``tokenizer.`` in front.

    Args:
        tokenizer: of transformers; None for a file whose reader is given numbers of tokens.
        vocabulary: rows of the model's embeddings.

    Raises:
        ValueError: if llama.cpp would cut texts in another way.
    """
    if tokenizer is None:
        return {"ggml.model": "no_vocab"}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("only tokenizers of the library tokenizers can be written")
    content = json.loads(backend.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise ValueError(f"only tokenizers of merges (BPE) can be written, not {model['type']}")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    tokens = _tokens(content, vocabulary)
    names = [token for token, _ in tokens]
    settings: dict[str, Any] = {
        "ggml.tokens": names,
        "ggml.token_type": [kind for _, kind in tokens],
    }
    if model.get("byte_fallback", False):
        settings |= {
            "ggml.model": "llama",
            "ggml.pre": "default",
            "ggml.scores": sentence_pieces.scores_of(names, pairs),
            "ggml.add_space_prefix": sentence_pieces.adds_space(content),
        }
    elif content["normalizer"] is not None:
        raise ValueError("the tokenizer changes texts before it cuts them, which is not known")
    else:
        settings |= {
            "ggml.model": "gpt2",
            "ggml.pre": _name_of_cut(content["pre_tokenizer"], pairs),
            "ggml.merges": [" ".join(pair) for pair in pairs],
        }
    for name, key in _IDS.items():
        number = getattr(tokenizer, f"{name}_id")
        if number is not None:
            settings[f"ggml.{key}_token_id"] = number
    encoded = tokenizer.encode("a")
    for name, place in (("bos", 0), ("eos", -1)):
        number = getattr(tokenizer, f"{name}_token_id")
        settings[f"ggml.add_{name}_token"] = number is not None and encoded[place] == number
    if isinstance(tokenizer.chat_template, str):
        settings["chat_template"] = tokenizer.chat_template
    return settings


def _tokens(content: Mapping[str, Any], vocabulary: int) -> list[tuple[str, int]]:
    """Return tokens and their kinds, in order."""
    model = content["model"]
    kinds = {number: (token, _NORMAL) for token, number in model["vocab"].items()}
    pieces = model.get("byte_fallback", False)
    if pieces:
        for number, (token, _) in kinds.items():
            if _BYTE.fullmatch(token):
                kinds[number] = token, sentence_pieces.BYTE
    for token in content["added_tokens"]:
        kind = _CONTROL if token["special"] else _USER_DEFINED
        kinds[token["id"]] = (token["content"], kind)
    if pieces and model["unk_token"] in model["vocab"]:
        kinds[model["vocab"][model["unk_token"]]] = model["unk_token"], sentence_pieces.UNKNOWN
    if max(kinds) >= vocabulary:
        raise ValueError(
            f"the tokenizer has token {max(kinds)}, and the model embeddings of {vocabulary}"
        )
    return [kinds.get(number, (f"[PAD{number}]", _UNUSED)) for number in range(vocabulary)]


def _name_of_cut(cut: Any, merges: list[Any]) -> str:
    if not merges and "ByteLevel" in json.dumps(cut):
        return "gpt-2"  # each byte is a token, however a text is cut
    plain = _plain(cut)
    for name, known in _CUTS.items():
        if _plain(known) == plain:
            return name
    raise ValueError(
        f"the tokenizer cuts texts in a way that is none of {', '.join(_CUTS)}, those known here"
    )


def _plain(cut: Any) -> Any:
    """Return a cut without what does not change tokens."""
    if isinstance(cut, list):
        return [_plain(part) for part in cut]
    if isinstance(cut, dict):
        return {key: _plain(part) for key, part in cut.items() if key != "trim_offsets"}
    return cut


def tokenizer_of(settings: Mapping[str, Any]) -> Any:
    """Return the tokenizer of a file, or None if it has none.

    Args:
        settings: of the file, whoever wrote it.

    Returns:
        A transformers tokenizer.

    Raises:
        ValueError: if it is of a kind that is not read.
    """
    kind = settings.get("tokenizer.ggml.model", "no_vocab")
    if kind == "no_vocab":
        return None
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"tokenizer.ggml.model must be 'gpt2' or 'llama', got {kind!r}")
    tokens = _list(settings, "tokens", str)
    kinds = _list(settings, "token_type", int) or [_NORMAL] * len(tokens)
    if not tokens or len(kinds) != len(tokens):
        raise ValueError("tokenizer.ggml.tokens and token_type do not fit together")
    content = _vocabulary(tokens, kinds, _frame(settings, tokens))
    make = _pieces if kind == "llama" else _merged_bytes
    for part, more in make(settings, tokens, kinds).items():
        content[part] = {**content[part], **more} if part == "model" else more
    special = {
        name: tokens[number]
        for name, key in _IDS.items()
        if isinstance(number := settings.get(f"tokenizer.ggml.{key}_token_id"), int)
        and number < len(tokens)
    }
    return _transformers_tokenizer(content, special, settings.get("tokenizer.chat_template"))


def _merged_bytes(
    settings: Mapping[str, Any], tokens: list[str], kinds: list[int]
) -> dict[str, Any]:
    """Return what makes tokens of bytes."""
    name = settings.get("tokenizer.ggml.pre", "default")
    cut = _ALIASES.get(name, name) if isinstance(name, str) else None
    if cut not in _CUTS:
        known = ", ".join([*_CUTS, *_ALIASES])
        raise ValueError(f"tokenizer.ggml.pre must be one of {known}, got {name!r}")
    merges = [merge.split(" ") for merge in _list(settings, "merges", str)]
    if {len(merge) for merge in merges} - {2}:
        raise ValueError("tokenizer.ggml.merges must be pairs")
    model = {"type": "BPE", "ignore_merges": cut == "llama-bpe", "merges": merges}
    return {"pre_tokenizer": _CUTS[cut], "decoder": _bytes(True), "model": model}


def _pieces(settings: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """Return what makes tokens of pieces of text."""
    scores = _list(settings, "scores", float)
    if len(scores) != len(tokens):
        raise ValueError("tokenizer.ggml.tokens and scores do not fit together")
    scored = [(t, s) for t, s, k in zip(tokens, scores, kinds, strict=True) if k == _NORMAL]
    unknown = next(
        (t for t, k in zip(tokens, kinds, strict=True) if k == sentence_pieces.UNKNOWN), None
    )
    prefix = settings.get("tokenizer.ggml.add_space_prefix", True) is True
    content = sentence_pieces.model_of(unknown, prefix)
    content["model"]["merges"] = sentence_pieces.merges_of(
        [t for t, _ in scored], [s for _, s in scored]
    )
    return content


def _list(settings: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    found = settings.get(f"tokenizer.ggml.{key}", [])
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
        raise ValueError(f"tokenizer.ggml.{key} must be a list of {kind.__name__}")
    return found


def _frame(settings: Mapping[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    """Return what puts tokens before and after a text."""
    parts: list[Any] = [{"Sequence": {"id": "A", "type_id": 0}}]
    used = {}
    for name, usual, place in (("bos", 0, 0), ("eos", 0, 1)):
        number = settings.get(f"tokenizer.ggml.{name}_token_id", usual)
        # Files of sentence pieces that do not say so want what their tokenizers did.
        wanted = name == "bos" and settings.get("tokenizer.ggml.model") == "llama"
        if settings.get(f"tokenizer.ggml.add_{name}_token", wanted) is True:
            if not isinstance(number, int) or not number < len(tokens):
                raise ValueError(f"tokenizer.ggml.{name}_token_id is no token: {number!r}")
            token = tokens[number]
            parts.insert(place * len(parts), {"SpecialToken": {"id": token, "type_id": 0}})
            used[token] = {"id": token, "ids": [number], "tokens": [token]}
    if not used:
        return None
    again = json.loads(json.dumps(parts).replace('"type_id": 0', '"type_id": 1'))
    pair = parts + json.loads(json.dumps(again).replace('"id": "A"', '"id": "B"'))
    return {"type": "TemplateProcessing", "single": parts, "pair": pair, "special_tokens": used}


def _vocabulary(tokens: list[str], kinds: list[int], frame: Any) -> dict[str, Any]:
    """Return ``tokenizer.json`` without what makes tokens of a text."""
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    vocabulary = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != _UNUSED
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "post_processor": frame,
        "model": {"vocab": vocabulary},
    }


def _transformers_tokenizer(content: dict[str, Any], special: dict[str, str], chat: Any) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        backend = Tokenizer.from_str(json.dumps(content))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    except Exception as error:  # whatever tokenizers raise
        raise ValueError(f"the tokenizer cannot be read ({error})") from error
    if isinstance(chat, str):
        tokenizer.chat_template = chat
    return tokenizer
