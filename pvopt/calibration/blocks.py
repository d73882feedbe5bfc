"""The decoder blocks of a causal language model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

__all__ = ["check_own_weights", "find_blocks", "outside_blocks"]


def find_blocks(model: nn.Module, names: Iterable[str]) -> tuple[str, list[nn.Module]]:
    """Find the list of a model's decoder blocks: the outermost one that holds all given weights.

    Args:
        model: a causal language model, its blocks in an ``nn.ModuleList`` in order.
        names: parameter names of the weights to quantize.

    Returns:
        The name of the list, and its modules.

    Raises:
        ValueError: if no list holds all of them.

    Example:
        >>> from pvopt.calibration.blocks import find_blocks
        >>> from pvopt.llm import load_model
        >>> model = load_model("tiny-llama").model
        >>> name, blocks = find_blocks(model, ["model.layers.1.mlp.up_proj.weight"])
        >>> name, len(blocks)
        ('model.layers', 2)
    """
    names = list(names)
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    inside = {n: [w for w in names if w.startswith(f"{n}.")] for n in lists}
    whole = [n for n in lists if len(inside[n]) == len(names)]
    if not whole:
        most = max(inside.values(), key=len, default=[])
        outside = [w for w in names if w not in most]
        raise ValueError(
            "calibration walks the blocks of one nn.ModuleList, which must hold every weight to "
            f"quantize; exclude those outside: {outside[:5]}{' ...' if len(outside) > 5 else ''}"
        )
    outermost = min(whole, key=len)
    return outermost, list(lists[outermost])


def outside_blocks(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return the weights that are in no block: those outside of the list that holds most of them.

    Args:
        model: a causal language model.
        names: parameter names of weights.

    Example:
        >>> from pvopt.calibration import outside_blocks
        >>> from pvopt.llm import load_model
        >>> model = load_model("tiny-llama").model
        >>> outside_blocks(model, ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
        ['lm_head.weight']
    """
    names = list(names)
    lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    counts = {n: sum(w.startswith(f"{n}.") for w in names) for n in lists}
    most = max(lists, key=lambda n: (counts[n], -len(n)), default=None)
    return [w for w in names if most is None or not w.startswith(f"{most}.")]


def check_own_weights(model: nn.Module, name: str, blocks: list[nn.Module]) -> None:
    """Refuse blocks that share modules or weights: each is calibrated once, on its own inputs.

    Args:
        model: which holds the blocks.
        name: of the list.
        blocks: its modules.

    Raises:
        ValueError: if a weight belongs to several blocks.

    Example:
        >>> from torch import nn
        >>> from pvopt.calibration.blocks import check_own_weights
        >>> layer = nn.Linear(2, 2)
        >>> model = nn.Module()
        >>> model.blocks = nn.ModuleList([layer, layer])
        >>> check_own_weights(model, "blocks", list(model.blocks))
        Traceback (most recent call last):
        ...
        ValueError: blocks 0 and 1 of 'blocks' share the weight 'weight', which cannot be calibrated
    """
    owners: dict[int, int] = {}
    for number, block in enumerate(blocks):
        for weight, parameter in block.named_parameters():
            owner = owners.setdefault(id(parameter), number)
            if owner != number:
                raise ValueError(
                    f"blocks {owner} and {number} of {name!r} share the weight {weight!r}, which "
                    "cannot be calibrated"
                )
