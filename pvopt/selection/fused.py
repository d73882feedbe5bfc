"""Layers that servers join into one, and so need one format."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["FUSED", "fused_groups"]

#: Layers of one module that are joined, by their last names.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
_EXPERTS = "experts"


def fused_groups(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group weights that servers join: q, k and v; gate and up; all experts of a block.

    Args:
        names: of parameters.

    Returns:
        Every name once, in groups in the order of their first names.

    Example:
        >>> from pvopt.selection.fused import fused_groups
        >>> names = ["0.attn.q_proj.weight", "0.attn.v_proj.weight", "0.attn.o_proj.weight"]
        >>> fused_groups([*names, "0.mlp.experts.0.w1.weight", "0.mlp.experts.1.w2.weight"])
        ... # doctest: +NORMALIZE_WHITESPACE
        [('0.attn.q_proj.weight', '0.attn.v_proj.weight'), ('0.attn.o_proj.weight',),
         ('0.mlp.experts.0.w1.weight', '0.mlp.experts.1.w2.weight')]
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        groups.setdefault(_joint(name), []).append(name)
    return [tuple(members) for members in groups.values()]


def _joint(name: str) -> tuple[str, ...]:
    """Return what the weights of a group have in common."""
    parts = name.split(".")
    if _EXPERTS in parts:
        return tuple(parts[: parts.index(_EXPERTS) + 1])
    owner, leaf = tuple(parts[:-2]), parts[-2] if parts[-1] == "weight" else ""
    for family in FUSED:
        if leaf in family:
            return (*owner, *family)
    return tuple(parts)
