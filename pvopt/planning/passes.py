"""What forward and backward passes take, counted on tensors that have shapes and no memory."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pvopt.llm import OutputHead, chunked_cross_entropy, chunked_kl
from pvopt.llm.output_head import find_head

from .watch import MemoryWatch

__all__ = ["PassCost", "pass_cost"]


def _addmm_flops(_: Any, left: Any, right: Any, **others: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


# The product that adds in place, which torch forgets to count.
_MORE_FLOPS = {torch.ops.aten.addmm_: _addmm_flops}


# Of models of many equal blocks these numbers are counted.
_FEWER = (2, 4)


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """What the passes of a step cost.

    Attributes:
        peak_bytes: the most memory beside the weights at once, all gradients included.
        gradient_bytes: what rests of it after the last pass.
        flops: floating-point operations of products and attention in one pass.
    """

    peak_bytes: int
    gradient_bytes: int
    flops: int


class _Enough(Exception):
    """The hidden states are known."""


def pass_cost(
    model: nn.Module,
    *,
    sequences: int,
    length: int,
    passes: int = 1,
    distilled: bool = True,
    autocast_dtype: torch.dtype | None = None,
    frozen: Collection[str] = (),
) -> PassCost:
    """Return what forward and backward passes of a causal language model cost.

    No tensor has memory meanwhile, so models of any size and batches of any length may be asked
    for.

    Args:
        model: as in transformers, with any tensors, of which only shapes and dtypes are looked at;
            they may be on the meta device.
        sequences: of a pass.
        length: tokens of each sequence.
        passes: number of passes whose gradients add up.
        distilled: whether the loss is the divergence from a teacher of the same shape, rather than
            the cross-entropy of the next tokens.
        autocast_dtype: of the computation under autocast; None for that of the weights.
        frozen: names of parameters without a gradient.

    Raises:
        ValueError: if the cost cannot be counted: what the model computes depends on more than
            shapes.

    Example:
        >>> from pvopt.planning import pass_cost
        >>> from pvopt.llm import empty_model
        >>> model = empty_model("tiny-llama")
        >>> one, two = (pass_cost(model, sequences=n, length=32) for n in (1, 2))
        >>> one.flops * 2 == two.flops, one.gradient_bytes == two.gradient_bytes
        (True, True)
        >>> one.peak_bytes < two.peak_bytes < 2 * one.peak_bytes
        True
    """
    numbers = _Numbers(sequences, length, passes, distilled, autocast_dtype)
    name, blocks = _largest_list(model)
    if len(blocks) <= 2 * _FEWER[-1] or len({type(block) for block in blocks}) > 1:
        return _counted(model, frozen, numbers)
    fewer, more = (_counted(_shortened(model, name, n), frozen, numbers) for n in _FEWER)
    # Each further block costs the same.
    further = (len(blocks) - _FEWER[1]) / (_FEWER[1] - _FEWER[0])
    costs = {
        field: round(
            getattr(more, field) + further * (getattr(more, field) - getattr(fewer, field))
        )
        for field in ("peak_bytes", "gradient_bytes", "flops")
    }
    return PassCost(**costs)


@dataclass(frozen=True)
class _Numbers:
    """What passes are counted: the arguments of :func:`pass_cost`."""

    sequences: int
    length: int
    passes: int
    distilled: bool
    autocast_dtype: torch.dtype | None


def _largest_list(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Return name and modules of the list of modules that holds most weights."""
    lists = [(n, list(m)) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=lambda found: _count(found[1]), default=("", []))


def _count(modules: list[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def _shortened(model: nn.Module, name: str, blocks: int) -> nn.Module:
    """Return a model that has the first blocks alone, and shares all tensors."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    short = copy.deepcopy(model, memo)
    owner, _, leaf = name.rpartition(".")
    kept = nn.ModuleList(list(short.get_submodule(name))[:blocks])  # type: ignore[arg-type]
    setattr(short.get_submodule(owner), leaf, kept)
    return short


def _counted(model: nn.Module, frozen: Collection[str], numbers: _Numbers) -> PassCost:
    with FakeTensorMode(allow_non_fake_inputs=True), _unpacked(), _quiet():
        student = _imagined(model, frozen)
        teacher = _imagined(model, [name for name, _ in model.named_parameters()])
        ids = torch.zeros(numbers.sequences, numbers.length, dtype=torch.long)
        with (
            MemoryWatch() as watch,
            FlopCounterMode(display=False, custom_mapping=_MORE_FLOPS) as flops,
            _GroupedProducts(),
        ):
            try:
                for _ in range(numbers.passes):
                    known = teacher if numbers.distilled else None
                    _pass(student, known, ids, numbers.autocast_dtype)
            except RuntimeError as error:
                raise ValueError(
                    f"{type(model).__name__} cannot be planned: its passes fail, or depend on more "
                    f"than shapes ({str(error).splitlines()[0]})"
                ) from error
            gradients = [p.grad for p in student.parameters() if p.grad is not None]
        return PassCost(
            peak_bytes=watch.peak,
            gradient_bytes=sum(gradient.nbytes for gradient in gradients),
            flops=flops.get_total_flops() // numbers.passes,
        )


class _GroupedProducts(TorchDispatchMode):
    """Counts products of experts as plain ones: torch knows their shapes in few dtypes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten._grouped_mm.default:
            return func(*args, **(kwargs or {}))
        rows, matrices = args[0], args[1]
        if matrices.dim() == 3:  # each row by the matrix of its expert
            return torch.mm(rows, matrices[0])
        experts = len(args[2] if len(args) > 2 else (kwargs or {})["offs"])
        product = torch.mm(rows, matrices)  # the gradient of the matrices, all at once
        return product.new_empty(experts, *product.shape)


@contextmanager
def _unpacked() -> Iterator[None]:
    """Let transformers take for granted that no sequences are packed: it would look at numbers.

    Where it cannot, it makes masks, and copies of keys and values, that a real pass does without.
    """
    from transformers import masking_utils

    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda *_, **__: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Let torch not print an error that is raised as well."""
    logger = logging.getLogger(fake_tensor.__name__)
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _imagined(model: nn.Module, frozen: Collection[str]) -> Any:
    """Return a copy of a model on the CPU whose tensors have no memory, with the same ties."""
    memo: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        empty = torch.empty(parameter.shape, dtype=parameter.dtype)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=name not in frozen)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return copy.deepcopy(model, memo).eval()


def _pass(student: Any, teacher: Any, ids: Tensor, autocast_dtype: torch.dtype | None) -> None:
    """Do what a step of :class:`pvopt.tuning.Trainer` does to some sequences."""
    with torch.autocast("cpu", autocast_dtype, enabled=autocast_dtype is not None):
        target = None
        if teacher is not None:
            with torch.no_grad():
                target = _hidden(teacher, ids)
        hidden, head = _hidden(student, ids), _head(student)
        if target is None:
            inputs, targets = hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
            loss = chunked_cross_entropy(inputs, head, targets)
        else:
            known = _head(teacher)  # pyright: ignore[reportArgumentType]
            loss = chunked_kl(hidden.flatten(0, 1), head, target.flatten(0, 1), known)
    loss.backward()


def _head(model: nn.Module) -> OutputHead:
    head, weight = find_head(model)
    bias = getattr(head, "bias", None)
    return OutputHead(weight, bias if isinstance(bias, Tensor) else None)


def _hidden(model: nn.Module, ids: Tensor) -> Tensor:
    """Return what the output head is given."""
    found: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else next(iter(kwargs.values())))
        raise _Enough

    hook = find_head(model)[0].register_forward_pre_hook(take, with_kwargs=True)
    try:
        model(input_ids=ids, use_cache=False)
    except _Enough:
        pass
    finally:
        hook.remove()
    return found[0]
