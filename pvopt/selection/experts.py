"""Experts of a mixture that are kept in one tensor, and which way their matrices lie."""

from __future__ import annotations

from torch import Tensor, nn

from pvopt.core.views import MatrixView

__all__ = ["experts_view"]

# What implementations call the number of experts, and sizes of inputs and outputs.
_NUMBERS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_routed_experts",
    "moe_num_experts",
    "n_experts",
    "groups",
)
_SIZES = (("in_features", "out_features"), ("input_size", "output_size"))
# In this order: beside "dim", "hidden_dim" is the width between the two projections.
_HIDDEN = ("hidden_size", "d_model", "embed_dim", "dim", "hidden_dim")


def experts_view(module: nn.Module, leaf: str, parameter: Tensor) -> MatrixView | None:
    """Return how a parameter holds the matrices of experts, or None if it does not.

    The module's own word counts (``is_transposed``, as transformers sets it); then the sizes of
    gate and up projections beside those of down projections, whose outputs are their inputs; then
    the sizes that the module knows. Where nothing tells, outputs come first.

    Args:
        module: that owns the parameter.
        leaf: name of the parameter in it.
        parameter: the tensor.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt.selection.experts import experts_view
        >>> module = nn.Module()
        >>> module.gate_up_proj = nn.Parameter(torch.zeros(4, 8, 12))  # [experts, in, 2 * middle]
        >>> module.down_proj = nn.Parameter(torch.zeros(4, 6, 8))
        >>> experts_view(module, "down_proj", module.down_proj)
        MatrixView(experts=True, transposed=True)
    """
    if parameter.dim() != 3 or not parameter.is_floating_point() or 0 in parameter.shape:
        return None
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters(recurse=False) if p.dim() == 3}
    fused, down = shapes.get("gate_up_proj"), shapes.get("down_proj")
    counted = any(getattr(module, name, None) == len(parameter) for name in _NUMBERS)
    named = "expert" in type(module).__name__.lower() or "expert" in leaf.lower()
    if not (counted or named or (fused and down and leaf in ("gate_up_proj", "down_proj"))):
        return None
    transposed = getattr(module, "is_transposed", None)
    if not isinstance(transposed, bool) and fused and down:
        transposed = fused[1] == down[2] and fused[2] == 2 * down[1]
    if not isinstance(transposed, bool):
        transposed = _from_sizes(module, leaf, tuple(parameter.shape[1:]))
    return MatrixView(experts=True, transposed=bool(transposed))


def _from_sizes(module: nn.Module, leaf: str, shape: tuple[int, ...]) -> bool | None:
    """Tell from the sizes that a module knows whether inputs come first; None if they do not."""
    if shape[0] == shape[1]:
        return None
    for inputs, outputs in _SIZES:
        sizes = getattr(module, outputs, None), getattr(module, inputs, None)
        if shape in (sizes, sizes[::-1]):
            return shape != sizes
    into_hidden = any(word in leaf for word in ("down", "w2", "output", "fc2"))
    for name in _HIDDEN:
        hidden = getattr(module, name, None)
        if hidden in shape:
            return (shape[1] == hidden) if into_hidden else (shape[0] == hidden)
    return None
