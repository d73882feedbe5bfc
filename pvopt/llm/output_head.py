"""What turns hidden states into logits, read off the model itself while it runs.

Models scale and cap their logits under names of their own, and divide by what others multiply with.
So no name is trusted: the model runs with its head held out, what it does to a few known logits is
looked at, and a model that does anything else is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["OutputHead", "as_head", "find_head", "run_to_head"]

# Known logits: both signs of the powers of two from 2^-6 to 2^7, which every dtype holds, and zero.
_POWERS = torch.cat([torch.zeros(1), 2.0 ** torch.arange(-6, 8), -(2.0 ** torch.arange(-6, 8))])
_ONE = 7  # place of 1


@dataclass(frozen=True, eq=False)
class OutputHead:
    r"""The linear output head of a language model and what the model does to its logits.

    .. math::
        z = s\,(W h + b) \qquad \text{or, with a soft cap } c, \qquad
        z = c \tanh\left(s\,(W h + b) / c\right)

    Args:
        weight: W, [vocabulary, H], floating point.
        bias: b, [vocabulary], or None.
        scale: s.
        cap: c, positive, or None.

    Raises:
        ValueError: shapes do not fit together, or a setting is out of range.

    Example:
        >>> import torch
        >>> from pvopt.llm import OutputHead
        >>> head = OutputHead(torch.eye(2), cap=1.0)
        >>> head.logits(torch.tensor([0.0, 100.0]))
        tensor([0., 1.])
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def __post_init__(self) -> None:
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"bias must have shape {list(self.weight.shape[:1])}, got {list(self.bias.shape)}"
            )
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {self.scale}")
        if self.cap is not None and not 0 < self.cap < math.inf:
            raise ValueError(f"cap must be positive or None, got {self.cap}")

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits, [..., vocabulary], of hidden states, [..., H].

        Args:
            hidden: in the dtype of the weight.
        """
        return _transformed(linear(hidden, self.weight, self.bias), self.scale, self.cap)

    def detach(self) -> OutputHead:
        """Return the same head as a constant."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, weight=self.weight.detach(), bias=bias)

    def clone(self) -> OutputHead:
        """Return a copy as a constant."""
        bias = None if self.bias is None else self.bias.detach().clone()
        return replace(self, weight=self.weight.detach().clone(), bias=bias)


def as_head(head: Tensor | OutputHead) -> OutputHead:
    """Return a head; a weight by itself is one without bias, scale and cap."""
    return head if isinstance(head, OutputHead) else OutputHead(head)


def find_head(model: nn.Module) -> tuple[nn.Module, Tensor]:
    """Return the module that makes the logits, and its weight.

    Raises:
        TypeError: if the model does not say which one, or it is not linear.
    """
    find: Any = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    weight = getattr(head, "weight", None)
    if not isinstance(head, nn.Module) or not isinstance(weight, Tensor) or weight.ndim != 2:
        raise TypeError(
            f"model must have a linear output head in model.get_output_embeddings(); "
            f"{type(model).__name__} has {type(head).__name__}"
        )
    return head, weight


def run_to_head(model: nn.Module, ids: Tensor) -> tuple[Tensor, OutputHead]:
    """Run a model, but its output head on one token only.

    Args:
        model: a causal language model.
        ids: token ids, [batch, length].

    Returns:
        What the head is applied to, [batch, length, H], and the head.

    Raises:
        TypeError: the model has no linear head of its own that it calls once.
        ValueError: the model does more to its logits than to scale and to cap them.
    """
    (module, weight), kind = find_head(model), type(model).__name__
    given: list[Tensor] = []
    made: list[Tensor] = []
    probes: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden = args[0] if args else next(iter(kwargs.values()))
        given.append(hidden)
        return (hidden.flatten(0, -2)[:1].unflatten(0, (1,) * (hidden.ndim - 1)),), {}

    def probe(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        made.append(output)
        repeats = -(-output.shape[-1] // len(_POWERS))
        known = _POWERS.to(output).repeat(repeats)[: output.shape[-1]]
        probes.append(known.expand_as(output).clone())  # the model may work in place
        return probes[-1].clone()

    hooks = [
        module.register_forward_pre_hook(take, with_kwargs=True),
        module.register_forward_hook(probe),
    ]
    try:
        seen: Any = model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if len(given) != 1:
        raise TypeError(
            f"model must call its output head once per pass; {kind} calls it {len(given)} times"
        )
    hidden = given[0]
    if hidden.shape[:-1].numel() != ids.numel():
        raise TypeError(
            f"model must apply its output head to every token; {kind} applies it to "
            f"{list(hidden.shape)} for ids of shape {list(ids.shape)}"
        )
    bias = getattr(module, "bias", None)
    head = OutputHead(weight, bias if isinstance(bias, Tensor) else None)
    with torch.no_grad():
        expected = linear(hidden.flatten(0, -2)[:1], weight.to(hidden), _cast(head.bias, hidden))
        known = bool(expected.isfinite().all())  # a model that diverged has other troubles
        if known and not _close(made[0].flatten(), expected.flatten(), absolute=True):
            raise ValueError(
                f"model must have a plain linear output head; that of {kind}, a "
                f"{type(module).__name__}, computes something else"
            )
        scale, cap = _find_transform(kind, model, probes[0], seen.logits)
    return hidden.reshape(*ids.shape, -1), replace(head, scale=scale, cap=cap)


def _cast(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(like)


def _find_transform(
    kind: str, model: nn.Module, probe: Tensor, seen: Tensor
) -> tuple[float, float | None]:
    """Return scale and cap that explain what became of known logits."""
    if seen.shape == probe.shape:
        config: Any = getattr(model, "config", None)
        numbers = dict(_numbers(config.to_dict() if hasattr(config, "to_dict") else {}))
        for cap in (None, *(n for name, n in numbers.items() if "cap" in name and n > 0)):
            scale = _find_scale(probe, seen, cap, list(numbers.values()))
            if scale is not None:
                return scale, cap
    raise ValueError(
        f"model must use its head's output as logits, perhaps scaled or softly capped; {kind} "
        "does something else to them, which losses on hidden states would ignore"
    )


def _find_scale(
    probe: Tensor, seen: Tensor, cap: float | None, numbers: list[float]
) -> float | None:
    known, found = probe.flatten().double(), seen.flatten().double()
    one = float(found[min(_ONE, len(found) - 1)] / known[min(_ONE, len(found) - 1)])
    if cap is not None:
        one = cap * math.atanh(one / cap) if abs(one) < cap else math.nan
    # The configuration has the exact value; what was seen is rounded.
    exact = [1.0, *(sign * n for n in numbers if n for sign in (1, -1))]
    exact = sorted({*exact, *(1 / n for n in exact)}, key=lambda n: abs(n - one))
    for scale in (*exact[:3], one):
        if math.isfinite(scale) and _close(found.to(seen.dtype), _transformed(known, scale, cap)):
            return scale
    return None


def _transformed(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    if cap is not None:
        return cap * torch.tanh(logits * (scale / cap))
    return logits if scale == 1 else logits * scale


def _close(found: Tensor, expected: Tensor, *, absolute: bool = False) -> bool:
    """Tell whether numbers agree up to a few roundings in the dtype of the first ones."""
    tolerance = 16 * max(torch.finfo(found.dtype).eps, 2**-23)
    if absolute:
        tolerance = 4 * tolerance * float(expected.abs().max())
        return bool(((found.double() - expected.double()).abs() <= tolerance).all())
    return bool(
        ((found.double() - expected.double()).abs() <= tolerance * expected.double().abs()).all()
    )


def _numbers(settings: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a configuration, nested ones included."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from _numbers(value, f"{name}.{key}")
    elif (
        isinstance(settings, int | float)
        and not isinstance(settings, bool)
        and math.isfinite(settings)
    ):
        yield name, float(settings)
