"""Gather X'X of the inputs of experts that lie in one tensor, each expert's own tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["ExpertHessians", "expert_by_expert"]

# Operations that multiply inputs by a weight: the places of both among their arguments.
_PRODUCTS = {
    torch.ops.aten.mm.default: (0, 1),
    torch.ops.aten.bmm.default: (0, 1),
    torch.ops.aten.addmm.default: (1, 2),
    torch.ops.aten.baddbmm.default: (1, 2),
    torch.ops.aten.matmul.default: (0, 1),
    torch.ops.aten.linear.default: (0, 1),
}


class ExpertHessians(TorchDispatchMode):
    r"""Sums of outer products of what is multiplied by a part of some parameters.

    .. math:: H_e = X_e' X_e

    for the rows ``X_e`` that a module multiplies by the part number ``e`` of a parameter along its
    first dimension. They are seen in the multiplications themselves, whatever the module does to
    find the tokens of an expert.

    Args:
        weights: parameters ``[experts, ...]`` by name, with the number of inputs of each.

    Example:
        >>> import torch
        >>> from pvopt.calibration.experts import ExpertHessians
        >>> weight = torch.zeros(3, 2, 4)
        >>> with torch.no_grad(), ExpertHessians({"w": (weight, 4)}) as hessians:
        ...     _ = torch.ones(5, 4) @ weight[1].T
        >>> [float(h.trace()) for h in hessians["w"]]
        [0.0, 20.0, 0.0]
    """

    def __init__(self, weights: Mapping[str, tuple[Tensor, int]]) -> None:
        super().__init__()
        self._paused = False
        self._weights = {name: weight.detach() for name, (weight, _) in weights.items()}
        self._sums = {
            name: torch.zeros(
                len(weight), inputs, inputs, dtype=torch.float64, device=weight.device
            )
            for name, (weight, inputs) in weights.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._sums[name]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing inside."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        places = _PRODUCTS.get(func)
        if places is not None and not self._paused:
            inputs, weight = args[places[0]], args[places[1]]
            for name, known in self._weights.items():
                part = _part(known, weight)
                if part is not None:
                    self._add(self._sums[name], part, inputs, weight)
        return func(*args, **(kwargs or {}))

    def _add(self, sums: Tensor, part: int, inputs: Tensor, weight: Tensor) -> None:
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        if weight.ndim == 3:  # a batch of experts, one beside the other
            sums[part : part + len(wide)] += wide.transpose(1, 2) @ wide
        else:
            rows = wide.flatten(0, -2)
            sums[part] += rows.T @ rows


def _part(known: Tensor, weight: Tensor) -> int | None:
    """Return which part of a parameter a tensor begins with, or None if it is no view of it."""
    if weight.device != known.device or weight.dtype != known.dtype:
        return None
    distance = weight.data_ptr() - known.data_ptr()
    size = known[0].numel() * known.element_size()
    return distance // size if 0 <= distance < size * len(known) else None


@contextmanager
def expert_by_expert(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let experts of transformers be computed one after the other, which can be watched.

    Args:
        modules: that hold expert tensors; those with another ``config`` are left alone.
    """
    configs: list[Any] = [module.config for module in modules if hasattr(module, "config")]
    configs = [c for c in configs if hasattr(c, "_experts_implementation")]
    before = [config._experts_implementation for config in configs]
    try:
        for config in configs:
            config._experts_implementation = "eager"
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._experts_implementation = implementation
