"""What the blocks of a model are called with, kept while the model runs."""

from __future__ import annotations

import inspect
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BlockCall", "BlockInputs", "capture_inputs"]


@dataclass(frozen=True, eq=False)
class BlockCall:
    """What a block is called with besides the hidden states: masks, positions, inputs of its own.

    Args:
        args: further positional arguments.
        kwargs: keyword arguments.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run a block on hidden states ``[batch, length, width]`` and return the next ones.

        What blocks hand to each other besides is left as it is: a block may run several times.
        """
        args = [_copied(value) for value in self.args]
        kwargs = {name: _copied(value) for name, value in self.kwargs.items()}
        return _first(block(hidden, *args, **kwargs))

    def last(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run a block for the last time: what it hands on besides reaches the blocks after it."""
        return _first(block(hidden, *self.args, **self.kwargs))


@dataclass(frozen=True, eq=False)
class BlockInputs:
    """The inputs of the first block, and how every block is called.

    Args:
        hidden: ``[batches, batch, length, width]``, overwritten by the inputs of later blocks.
        calls: by block and batch. Batches share a call where nothing in it depends on the tokens.
            What the blocks of one pass hand to each other (a dictionary of keys and values) is one
            object for all calls of the batch, which :meth:`BlockCall.last` fills.
    """

    hidden: Tensor
    calls: list[list[BlockCall]]


class _Enough(Exception):
    """Raised inside the model to leave it: the block of interest is reached."""


@torch.no_grad()
def capture_inputs(
    model: nn.Module, blocks: list[nn.Module], batches: Tensor, masks: Tensor | None = None
) -> BlockInputs:
    """Run a model up to its blocks and keep what they are given.

    Whether calls depend on tokens is seen in two different batches. If they do, every batch runs
    through the whole model once.

    Args:
        model: called as ``model(input_ids, attention_mask=..., use_cache=False)``.
        blocks: as :func:`find_blocks` returns them.
        batches: ``[batches, batch, length]`` token ids.
        masks: the same shape, 0 where a token is padding; None for no padding.

    Returns:
        The hidden states in the model's dtype, on its device.

    Raises:
        ValueError: if the model does not run its blocks once each and in order, each on what the
            one before returned.

    Example:
        >>> import torch
        >>> from pvopt.calibration.capture import capture_inputs
        >>> from pvopt.llm import load_model
        >>> model = load_model("tiny-llama").model
        >>> inputs = capture_inputs(model, list(model.model.layers), torch.zeros(3, 1, 8).long())
        >>> inputs.hidden.shape, len(inputs.calls)
        (torch.Size([3, 1, 8, 64]), 2)
    """
    capture = _Capture(model, blocks)

    def run(number: int, *, whole: bool) -> list[tuple[Tensor, BlockCall]]:
        return capture.run(batches[number], None if masks is None else masks[number], whole=whole)

    other = next((n for n, b in enumerate(batches) if not torch.equal(b, batches[0])), None)
    found = {0: run(0, whole=True)}
    if other is not None:
        found[other] = run(other, whole=True)
    capture.check()
    likes = [call for _, call in found[0]]
    same = masks is None and _equal([call for _, call in found[other or 0]], likes)
    hidden = found[0][0][0]
    states = hidden.new_empty(len(batches), *hidden.shape)
    calls: list[list[BlockCall]] = [[] for _ in blocks]
    for number in range(len(batches)):
        seen = found.get(number) or run(number, whole=not same)
        states[number] = seen[0][0]
        for place, own in enumerate(calls):
            own.append(likes[place] if same else _shared(seen[place][1], likes[place]))
        found = {k: v for k, v in found.items() if k != number}
    return BlockInputs(states, calls)


class _Capture:
    """Watches the blocks of a model while it runs."""

    def __init__(self, model: nn.Module, blocks: list[nn.Module]) -> None:
        self._model, self._blocks = model, blocks
        self._device = next(model.parameters()).device
        self._order: list[int] = []
        self._broken: int | None = None

    def run(
        self, ids: Tensor, mask: Tensor | None, *, whole: bool
    ) -> list[tuple[Tensor, BlockCall]]:
        """Return hidden states and call of every block, or of the first one alone."""
        seen: list[tuple[Tensor, BlockCall]] = []
        returned: list[Tensor] = []
        containers: list[tuple[Any, Any]] = []
        self._order.clear()

        def take(
            block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, number: int
        ) -> None:
            kwargs = dict(kwargs)
            if not args:  # by the name that the block has for it
                args = (kwargs.pop(next(iter(inspect.signature(block.forward).parameters))),)
            self._order.append(number)
            if returned and self._broken is None and not _equal(args[0], returned.pop()):
                self._broken = number
            seen.append((args[0].clone() if number == 0 else args[0], BlockCall(args[1:], kwargs)))
            if number == 0:
                given = [*args[1:], *kwargs.values()]
                containers.extend((v, copy(v)) for v in given if isinstance(v, dict | list))
            if not whole:
                raise _Enough

        def give(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            returned[:] = [_first(output)]

        hooks = []
        for number, block in enumerate(self._blocks):
            hook = partial(take, number=number)
            hooks.append(block.register_forward_pre_hook(hook, with_kwargs=True))
            hooks.append(block.register_forward_hook(give))
        masking = {} if mask is None else {"attention_mask": mask.to(self._device)}
        try:
            self._model(ids.to(self._device), use_cache=False, **masking)
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        for container, before in containers:  # as the first block found it
            container.clear()
            container.update(before) if isinstance(before, dict) else container.extend(before)
        return seen

    def check(self) -> None:
        """Refuse models whose blocks are no chain."""
        count = len(self._blocks)
        if self._order != list(range(count)):
            raise ValueError(
                f"the model must run its {count} blocks once each and in order, it ran blocks "
                f"{self._order[:20]}{' ...' if len(self._order) > 20 else ''}"
            )
        if self._broken is not None:
            raise ValueError(
                f"the model must give each block what the one before returned; block "
                f"{self._broken} is given something else"
            )


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _copied(value: Any) -> Any:
    return copy(value) if isinstance(value, dict | list) else value


def _equal(one: Any, other: Any) -> bool:
    """Tell whether arguments are alike; what blocks may fill (a dictionary) is like itself only."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (
            one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
        )
    if isinstance(one, BlockCall) and isinstance(other, BlockCall):
        return _equal(one.args, other.args) and (
            one.kwargs.keys() == other.kwargs.keys()
            and all(_equal(value, other.kwargs[name]) for name, value in one.kwargs.items())
        )
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        filled = isinstance(one, tuple) or len(one) > 0
        return filled and len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, str | int | float | bool | None):
        return one == other
    return one is other


def _shared(call: BlockCall, like: BlockCall) -> BlockCall:
    """Return the call with the tensors of another one where they are equal, to save memory."""

    def share(one: Any, other: Any) -> Any:
        return other if isinstance(one, Tensor | tuple) and _equal(one, other) else one

    args = (
        tuple(map(share, call.args, like.args)) if len(call.args) == len(like.args) else call.args
    )
    kwargs = {name: share(value, like.kwargs.get(name)) for name, value in call.kwargs.items()}
    return BlockCall(args, kwargs)
