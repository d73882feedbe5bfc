"""The decoder blocks of a causal language model, and what they are called with."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BlockCall", "BlockInputs", "capture_inputs", "find_blocks"]


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
            f"quantize; outside of it are {outside[:5]}{' ...' if len(outside) > 5 else ''}"
        )
    outermost = min(whole, key=len)
    return outermost, list(lists[outermost])


@dataclass(frozen=True, eq=False)
class BlockCall:
    """What a block is called with besides the hidden states: masks, positions.

    Args:
        args: further positional arguments.
        kwargs: keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run a block on hidden states ``[batch, length, width]`` and return the next ones."""
        output = block(hidden, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True, eq=False)
class BlockInputs:
    """The inputs of the first block, and how every block is called.

    Args:
        hidden: ``[batches, batch, length, width]``, overwritten by the inputs of later blocks.
        calls: one for each block; all batches have the same shape and no padding, so that one
            call serves them all.
    """

    hidden: Tensor
    calls: list[BlockCall]


class _Enough(Exception):
    """Raised inside the model to leave it: the block of interest is reached."""


@torch.no_grad()
def capture_inputs(model: nn.Module, blocks: list[nn.Module], batches: Tensor) -> BlockInputs:
    """Run a model up to its blocks and keep what they are given.

    Args:
        model: called as ``model(input_ids, use_cache=False)``.
        blocks: as :func:`find_blocks` returns them.
        batches: ``[batches, batch, length]`` token ids.

    Returns:
        The hidden states in the model's dtype, on its device.

    Example:
        >>> from pvopt.llm import load_model
        >>> model = load_model("tiny-llama").model
        >>> inputs = capture_inputs(model, list(model.model.layers), torch.zeros(3, 1, 8).long())
        >>> inputs.hidden.shape, len(inputs.calls)
        (torch.Size([3, 1, 8, 64]), 2)
    """
    seen: list[tuple[Tensor, BlockCall]] = []

    def take(
        block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, last: bool
    ) -> None:
        kwargs = dict(kwargs)
        if not args:  # by the name that the block has for it
            args = (kwargs.pop(next(iter(inspect.signature(block.forward).parameters))),)
        seen.append((args[0], BlockCall(args[1:], kwargs)))
        if last:
            raise _Enough

    def run(batch: Tensor, until: int) -> list[tuple[Tensor, BlockCall]]:
        seen.clear()
        hooks = [
            block.register_forward_pre_hook(
                lambda *given, last=number == until: take(*given, last=last), with_kwargs=True
            )
            for number, block in enumerate(blocks[: until + 1])
        ]
        try:
            model(batch.to(device), use_cache=False)
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return list(seen)

    device = next(model.parameters()).device
    # Blocks may be called differently (local and global attention): each one's call is kept.
    first = run(batches[0], len(blocks) - 1)
    if len(first) != len(blocks):
        raise ValueError(
            f"the model must run its {len(blocks)} blocks once each and in order, "
            f"it ran {len(first)}"
        )
    hidden = first[0][0]
    states = hidden.new_empty(len(batches), *hidden.shape)
    states[0] = hidden
    for number, batch in enumerate(batches[1:], start=1):
        states[number] = run(batch, 0)[0][0]
    return BlockInputs(states, [call for _, call in first])
