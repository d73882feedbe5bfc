"""The check that keeps NaN and infinity out of weights, codes and state."""

# torch.optim is built on _foreach_norm; its name begins with an underscore all the same.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .placement import local

__all__ = ["NonFiniteGradientError", "check_finite"]


class NonFiniteGradientError(FloatingPointError):
    """A gradient holds NaN or infinity; nothing was changed."""


def check_finite(
    groups: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    flags: Sequence[Tensor] = (),
    sums: Sequence[Tensor] = (),
    summed: Collection[int] = (),
) -> bool:
    """Raise if any gradient of some parameter groups holds NaN or infinity.

    Waits once for each device, however many gradients there are.

    Args:
        groups: parameter groups of an optimizer.
        names: names of parameters by ``id``, for the message; ``param_names`` of a group win.
        flags: scalars of bool that are read in the same wait.
        sums: floats to which every entry of some gradients was added: finite ones prove that the
            gradients are, and are far fewer.
        summed: ``id`` of the parameters of these gradients.

    Returns:
        Whether all flags hold.

    Raises:
        NonFiniteGradientError: naming the first such parameter.

    Example:
        >>> import torch
        >>> from pvopt.engine.finite_check import check_finite
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> p.grad = torch.tensor([1.0, float("nan")])
        >>> _ = check_finite([{"params": [p]}], {id(p): "weight"})
        Traceback (most recent call last):
        ...
        pvopt.engine.finite_check.NonFiniteGradientError: the gradient of 'weight' (parameter 0 ...
    """
    # A finite norm proves finite entries and reads at memory speed, in one call for all of them;
    # the exact look is much slower and only needed where a norm overflowed.
    alike: dict[torch.device, dict[torch.dtype, list[Tensor]]] = defaultdict(dict)
    looked_at = [g for _, _, p, g in _gradients(groups) if id(p) not in summed]
    for tensor in [*looked_at, *sums]:
        alike[tensor.device].setdefault(tensor.dtype, []).append(tensor)
    for found in alike.values():
        norms: list[Tensor] = []
        for dtype, tensors in found.items():
            exact = dtype if dtype.itemsize > 4 else torch.float32  # float16 ends at 65504
            norms += torch._foreach_norm(tensors, dtype=exact)
        total = torch.stack(norms).sum()
        for flag in flags:
            if flag.device == total.device:
                total = total / flag  # not finite without the flag
        if not math.isfinite(float(total)):
            break
    else:
        return all(bool(flag) for flag in flags if flag.device not in alike)
    for i, j, p, gradient in _gradients(groups):
        if bool(gradient.isfinite().all()):
            continue
        known = groups[i].get("param_names", {j: names.get(id(p), "(not quantized)")})[j]
        raise NonFiniteGradientError(
            f"the gradient of {known!r} (parameter {j} of group {i}) holds NaN or infinity; "
            "weights, codes and state are unchanged"
        )
    return all(bool(flag) for flag in flags)


def _gradients(
    groups: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[int, int, nn.Parameter, Tensor]]:
    """Yield number of group, place in it, parameter and gradient's entries, where there is one."""
    for i, group in enumerate(groups):
        for j, p in enumerate(group["params"]):
            if p.grad is not None:
                grad = local(p.grad)
                yield i, j, p, grad.coalesce().values() if grad.is_sparse else grad
