"""What a file says of its architecture: Llamas, and nothing that only looks like one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from .positions import parameters_of, unsupported_positions

__all__ = ["config_of", "head_size", "rotation_of", "settings_of", "unsupported_config"]

_KINDS = ("llama", "mistral")
# Settings of a file, each with what the configuration calls it.
_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_EPSILON, _THETA = "attention.layer_norm_rms_epsilon", "rope.freq_base"
_MOST = 1 << 31


def unsupported_config(config: Any) -> str | None:
    """Return why no Llama of llama.cpp computes what a model does, or None.

    Args:
        config: of transformers.
    """
    if config.model_type not in _KINDS:
        return (
            f"only models of the kinds {', '.join(_KINDS)} can be written, not {config.model_type}"
        )
    if config.hidden_act != "silu":
        return f"hidden_act must be 'silu', got {config.hidden_act!r}"
    reason = unsupported_positions(rotation_of(config))
    if reason is not None:
        return reason
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        return f"each position must see all before it, not a window of {window}"
    return None


def settings_of(config: Any) -> dict[str, int | float]:
    """Return the settings of a file, without ``llama.`` in front."""
    found: dict[str, int | float] = {key: getattr(config, ours) for key, ours in _SIZES.items()}
    size = head_size(config)
    return found | {
        "attention.key_length": size,
        "attention.value_length": size,
        "rope.dimension_count": size,
        "vocab_size": config.vocab_size,
        _EPSILON: float(config.rms_norm_eps),
        _THETA: float(rotation_of(config)["rope_theta"]),
    }


def rotation_of(config: Any) -> Mapping[str, Any]:
    """Return how a model rotates, as its configuration has it."""
    return config.rope_parameters or {}


def head_size(config: Any) -> int:
    """Return the size of an attention head."""
    size = getattr(config, "head_dim", None)
    return size or config.hidden_size // config.num_attention_heads


def config_of(
    settings: Mapping[str, Any],
    vocabulary: int,
    biased: Callable[[str], bool],
    tied: bool,
    factors: Tensor | None = None,
) -> dict[str, Any]:
    """Return ``config.json`` of the model in a file.

    Args:
        settings: of the file, whoever wrote it.
        vocabulary: rows of its embeddings.
        biased: whether there is a bias in the layers whose names have this in them.
        tied: whether embeddings are the output matrix, too.
        factors: that frequencies are divided by, or None.

    Raises:
        ValueError: if a setting is missing or out of range, or the model is no plain Llama.
    """
    kind = settings.get("general.architecture")
    if kind != "llama":
        raise ValueError(f"general.architecture must be 'llama', got {kind!r}")
    if settings.get("split.count", 1) not in (0, 1):
        raise ValueError("it is one of several parts: join them first (llama-gguf-split --merge)")
    if settings.get("llama.expert_count", 0) != 0:
        raise ValueError("it has experts, which are not read")
    if settings.get("llama.rope.scaling.type", "none") != "none":
        raise ValueError("its positions are scaled (llama.rope.scaling.type), which is not read")
    queries = settings.get("llama.attention.head_count")
    usual = {"llama.attention.head_count_kv": queries}
    sizes = {ours: _size(usual | dict(settings), f"llama.{key}") for key, ours in _SIZES.items()}
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    if heads % sizes["num_key_value_heads"]:
        raise ValueError("llama.attention.head_count must be a multiple of head_count_kv")
    size = _size(
        {"llama.attention.key_length": width // heads, **settings}, "llama.attention.key_length"
    )
    for key in ("attention.value_length", "rope.dimension_count"):
        if settings.get(f"llama.{key}", size) != size:
            raise ValueError(f"llama.{key} must be {size}, as attention.key_length is")
    if size % 2:
        raise ValueError(f"llama.attention.key_length must be even, got {size}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **sizes,
        "head_dim": size,
        "vocab_size": vocabulary,
        "rms_norm_eps": _real(settings, f"llama.{_EPSILON}", 1e-5),
        "rope_parameters": parameters_of(
            _real(settings, f"llama.{_THETA}", 10000.0), size, factors
        ),
        "attention_bias": biased("attn"),
        "mlp_bias": biased("ffn"),
        "tie_word_embeddings": tied,
        "dtype": "float32",
        **{
            ours: settings[key]
            for ours, key in (
                ("bos_token_id", "tokenizer.ggml.bos_token_id"),
                ("eos_token_id", "tokenizer.ggml.eos_token_id"),
                ("pad_token_id", "tokenizer.ggml.padding_token_id"),
            )
            if isinstance(settings.get(key), int) and settings[key] < vocabulary
        },
    }


def _size(settings: Mapping[str, Any], key: str) -> int:
    found = settings.get(key)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 < found < _MOST:
        raise ValueError(f"{key} must be a positive integer, got {found!r}")
    return found


def _real(settings: Mapping[str, Any], key: str, usual: float) -> float:
    found = settings.get(key, usual)
    if not isinstance(found, float) or not 0 < found < 1e30:
        raise ValueError(f"{key} must be a positive number, got {found!r}")
    return float(str(np.float32(found)))  # files have float32: the shortest number that is that one
