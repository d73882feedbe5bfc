"""Which implementation of an operation runs.

An operation ``NAME`` has up to three implementations, functions of the same name and arguments:
``pvopt_kernels.reference.NAME`` (always), ``pvopt_kernels.triton.NAME`` and
``pvopt_kernels.cpu.NAME``. The tensors decide:

* on a GPU the Triton kernel, if Triton is installed;
* on a CPU the implementation for CPUs;
* in float64, and where the above does not exist, the reference (torch, on the tensors' device).

The environment variable ``PVOPT_KERNELS`` overrides the choice by device: ``reference``, ``triton``
(on a CPU only with ``TRITON_INTERPRET=1`` set before the first import of Triton) or ``cpu``. It is
read at every call. Operations that lack the implementation still run their reference.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["KINDS", "available", "call", "choose", "implementation"]

KINDS = ("reference", "triton", "cpu")
_VARIABLE = "PVOPT_KERNELS"


@functools.cache
def _find(kind: str, name: str) -> Callable[..., Any] | None:
    """Return ``pvopt_kernels.KIND.NAME.NAME``, or None if there is no such module."""
    module = f"{__package__}.{kind}.{name}"
    if importlib.util.find_spec(module) is None:
        return None
    if kind == "triton" and importlib.util.find_spec("triton") is None:
        return None
    return getattr(importlib.import_module(module), name)


def available(name: str) -> dict[str, Callable[..., Any]]:
    """Return the implementations of an operation that can be imported here, by kind.

    Args:
        name: name of the operation.

    Example:
        >>> from pvopt_kernels.dispatch import available
        >>> "reference" in available("smallest")
        True
    """
    found = {kind: _find(kind, name) for kind in KINDS}
    return {kind: function for kind, function in found.items() if function is not None}


def _interpreted() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


def choose(name: str, tensor: Tensor) -> str:
    """Return the kind of implementation that an operation uses.

    Args:
        name: name of the operation.
        tensor: the argument that decides by its device and dtype.

    Raises:
        ValueError: if ``PVOPT_KERNELS`` is set to anything but the three kinds, or to one that
            cannot work on the tensor's device.

    Example:
        >>> import torch
        >>> from pvopt_kernels.dispatch import choose
        >>> choose("sum_by_code", torch.zeros(2, dtype=torch.float64))
        'reference'
    """
    forced = os.environ.get(_VARIABLE) or None
    if forced is not None and forced not in KINDS:
        raise ValueError(f"{_VARIABLE} must be one of {', '.join(KINDS)} or unset, got {forced!r}")
    on_cpu = tensor.device.type == "cpu"
    kind = forced or ("cpu" if on_cpu else "triton")
    if tensor.dtype == torch.float64 or _find(kind, name) is None:
        return "reference"
    if kind == "cpu" and not on_cpu:
        raise ValueError(f"{_VARIABLE}=cpu needs tensors on a CPU, got one on {tensor.device}")
    if kind == "triton" and on_cpu and not _interpreted():
        raise ValueError(
            f"{_VARIABLE}=triton runs tensors on a CPU only with TRITON_INTERPRET=1 set before "
            f"Triton is imported"
        )
    return kind


def implementation(name: str, tensor: Tensor) -> Callable[..., Any]:
    """Return the function that computes an operation.

    Args:
        name: name of the operation.
        tensor: the argument that decides by its device and dtype.

    Raises:
        ValueError: if ``PVOPT_KERNELS`` is not valid, see :func:`choose`.

    Example:
        >>> import torch
        >>> from pvopt_kernels.dispatch import implementation
        >>> run = implementation("sum_by_code", torch.ones(3, 1))
        >>> run(torch.ones(3, 1), torch.tensor([1, 1, 0]), 2).tolist()
        [[1.0], [2.0]]
    """
    found = _find(choose(name, tensor), name)
    if found is None:
        raise NotImplementedError(f"{name} has no reference implementation")
    return found


def call(op: Callable[..., Any], *arguments: Any) -> Any:
    """Run a custom op of torch, past torch's dispatcher where that has no part in it.

    That is without gradients, on plain tensors, outside of compilation and of modes that watch
    operations. The dispatcher takes 60 us a call, 8 % of an optimizer's step on SmolLM2 in all.

    Args:
        op: what ``torch.library.custom_op`` returned.
        arguments: of the op.

    Example:
        >>> import torch
        >>> from torch import Tensor
        >>> from pvopt_kernels.dispatch import call
        >>> def twice(x: Tensor) -> Tensor:
        ...     return 2 * x
        >>> op = torch.library.custom_op("pvopt_example::twice", twice, mutates_args=())
        >>> with torch.no_grad():
        ...     call(op, torch.ones(2))
        tensor([2., 2.])
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or is_in_torch_dispatch_mode():
        return op(*arguments)
    if any(_is_special(x) for x in arguments):
        return op(*arguments)
    return getattr(op, "_init_fn", op)(*arguments)


def _is_special(argument: Any) -> bool:
    """Whether an argument is or has a tensor of a class of its own."""
    if isinstance(argument, list):
        return any(map(_is_special, argument))
    return isinstance(argument, Tensor) and type(argument) not in (Tensor, nn.Parameter)
