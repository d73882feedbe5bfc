"""Names of the tensors of a Llama in GGUF, and the order of the rows of queries and keys."""

from __future__ import annotations

import re

from torch import Tensor

__all__ = ["heads_of", "interleaved", "name_in_file", "name_in_model", "separated"]

_LAYERS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OTHERS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYERS_BACK = {theirs: ours for ours, theirs in _LAYERS.items()}
_OTHERS_BACK = {theirs: ours for ours, theirs in _OTHERS.items()}


def name_in_file(name: str) -> str | None:
    """Return what GGUF calls a tensor of ``LlamaForCausalLM``, or None if it has no name for it.

    Example:
        >>> from pvopt.formats.gguf.names import name_in_file
        >>> name_in_file("model.layers.3.mlp.up_proj.weight"), name_in_file("lm_head.weight")
        ('blk.3.ffn_up.weight', 'output.weight')
    """
    owner, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", owner)
    if found is None:
        return f"{_OTHERS[owner]}.{kind}" if owner in _OTHERS else None
    number, part = found.groups()
    return f"blk.{number}.{_LAYERS[part]}.{kind}" if part in _LAYERS else None


def name_in_model(name: str) -> str | None:
    """Return the name that a tensor of a file has in the model, the inverse.

    Example:
        >>> from pvopt.formats.gguf.names import name_in_model
        >>> name_in_model("blk.3.ffn_up.weight"), name_in_model("blk.3.ssm_a")
        ('model.layers.3.mlp.up_proj.weight', None)
    """
    found = re.fullmatch(r"(?:blk\.(0|[1-9]\d{0,5})\.)?(\w+)\.(weight|bias)", name)
    if found is None:
        return None
    number, part, kind = found.groups()
    if number is None:
        return f"{_OTHERS_BACK[part]}.{kind}" if part in _OTHERS_BACK else None
    ours = _LAYERS_BACK.get(part)
    return None if ours is None else f"model.layers.{number}.{ours}.{kind}"


def heads_of(name: str, heads: int, key_heads: int) -> int | None:
    """Return how many heads the rows of a tensor belong to where their order differs, or None.

    Args:
        name: in the model.
        heads: of the queries.
        key_heads: of keys and values.
    """
    layer = name.rpartition(".")[0]
    if layer.endswith("self_attn.q_proj"):
        return heads
    return key_heads if layer.endswith("self_attn.k_proj") else None


def interleaved(rows: Tensor, heads: int | None) -> Tensor:
    """Return rows in the order of files: the two that are rotated together lie side by side.

    In the model, each head has the first ones of all pairs before the second ones.

    Args:
        rows: ``[rows, ...]``, of weights, codes, scales or bytes.
        heads: how many, or None for rows that keep their order.

    Example:
        >>> import torch
        >>> from pvopt.formats.gguf.names import interleaved
        >>> interleaved(torch.arange(8), 2).tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    if heads is None:
        return rows
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


def separated(rows: Tensor, heads: int | None) -> Tensor:
    """Return rows in the order of the model, the inverse."""
    if heads is None:
        return rows
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(rows.shape)
