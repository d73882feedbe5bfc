"""Any parameter of any module as codes and values, decoded where the module reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pvopt.parametrizations.representation import Representation

from .holding import foreign_codes, held, hold, narrowed, offered

__all__ = ["PackedWeight", "pack_weight", "packed_weights", "unpack_weights"]

_SUFFIX = "_packed"


class PackedWeight(nn.Module):
    r"""Codes and values of a parameter; called, it decodes.

    .. math:: W = \mathrm{leave}(\mathrm{decode}(z, v))

    Codes are buffers at their real width, values are parameters. ``pack_weight`` of the
    same module puts it in the place of a parameter.

    Args:
        representation: whose codes and values are copied.
        dtype: of the values; None keeps theirs.
        dense_dtype: of the decoded weight; None for that of the values.

    Example:
        >>> import torch
        >>> from pvopt import SharedValues
        >>> from pvopt.layers import PackedWeight
        >>> rep = SharedValues(num_values=2).fit(torch.tensor([[0.0, 1.0]]))
        >>> PackedWeight(rep)()
        tensor([[0., 1.]], grad_fn=<ViewBackward0>)
    """

    def __init__(
        self,
        representation: Representation,
        *,
        dtype: torch.dtype | None = None,
        dense_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        rep = representation
        self.scheme, self.shape, self.dense_dtype = rep.scheme, rep.shape, dense_dtype
        streams = rep.streams
        self.codes, self.values = nn.Module(), nn.Module()
        hold(self.codes, {n: streams[n].pack(codes) for n, codes in rep.codes.items()}, {})
        hold(self.values, {}, narrowed(rep.values, dtype))
        self._names = tuple(rep.codes), tuple(rep.values)

    def representation(self) -> Representation:
        """Return copies of codes and values."""
        return self._represent(lambda tensor: tensor.detach().clone())

    def _represent(self, value: Callable[[Tensor], Tensor]) -> Representation:
        streams = self.scheme.streams(self.shape)
        packed, values = held(self.codes, self._names[0]), held(self.values, self._names[1])
        codes = {n: streams[n].unpack(words, check=False) for n, words in packed.items()}
        return self._of(codes, {name: value(tensor) for name, tensor in values.items()})

    def _of(self, codes: dict[str, Tensor], values: dict[str, Tensor]) -> Representation:
        scheme = self.scheme
        return Representation(
            scheme.parametrization, codes, values, self.shape, scheme.space, view=scheme.view
        )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        packed = offered(held(self.codes, self._names[0]), state_dict, f"{prefix}codes.")
        if packed is not None:
            streams = self.scheme.streams(self.shape)
            with foreign_codes(prefix):
                codes = {name: streams[name].unpack(words) for name, words in packed.items()}
                self._of(codes, held(self.values, self._names[1])).check_codes()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self) -> Tensor:
        """Return the dense weight ``[*shape]``, differentiable in the values."""
        dense = self._represent(lambda tensor: tensor).decode()
        return dense if self.dense_dtype is None else dense.to(self.dense_dtype)

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, {self.scheme}"


class _Packs:
    """What modules with packed parameters are instances of, beside their own class.

    A parameter is decoded when it is read; while the module runs, once for all its reads.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outer = self.__dict__.get("_decoded")
        self.__dict__["_decoded"] = {} if outer is None else outer
        try:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.__dict__["_decoded"] = outer


def _read(leaf: str) -> property:
    def read(self: nn.Module) -> Tensor:
        kept = self.__dict__.get("_decoded")
        if kept is None:
            return self._modules[leaf + _SUFFIX]()  # type: ignore[misc]
        if leaf not in kept:
            kept[leaf] = self._modules[leaf + _SUFFIX]()  # type: ignore[misc]
        return kept[leaf]

    return property(read)


def pack_weight(module: nn.Module, leaf: str, packed: PackedWeight) -> None:
    """Put codes and values in the place of a parameter, which the module reads as before.

    The module gets a class of its own, under its old name, in which the parameter is a property.

    Args:
        module: that owns the parameter.
        leaf: name of the parameter in it.
        packed: what is decoded whenever the module reads the parameter.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pvopt import UniformGrid
        >>> from pvopt.layers import PackedWeight
        >>> from pvopt.layers.packed_weight import pack_weight
        >>> conv = nn.Conv1d(4, 4, 3)
        >>> rep = UniformGrid(bits=4).fit(conv.weight)
        >>> pack_weight(conv, "weight", PackedWeight(rep))
        >>> torch.equal(conv.weight, rep.decode()), conv(torch.zeros(1, 4, 5)).shape
        (True, torch.Size([1, 4, 3]))
    """
    del module._parameters[leaf]
    module.add_module(leaf + _SUFFIX, packed)
    cls = type(module)
    bases = (cls,) if issubclass(cls, _Packs) else (_Packs, cls)
    module.__class__ = type(cls.__name__, bases, {leaf: _read(leaf), "__module__": cls.__module__})


def packed_weights(module: nn.Module) -> dict[str, PackedWeight]:
    """Return what stands for parameters of a module, by their names."""
    if not isinstance(module, _Packs):
        return {}
    return {
        name.removesuffix(_SUFFIX): child
        for name, child in module.named_children()
        if isinstance(child, PackedWeight)
    }


def unpack_weights(module: nn.Module, dense: Callable[[PackedWeight], nn.Parameter]) -> None:
    """Put parameters back in the place of all codes and values, and give the module its class.

    Args:
        module: that reads packed parameters.
        dense: makes the parameter.
    """
    found = packed_weights(module)
    kinds = type(module).__mro__
    module.__class__ = kinds[kinds.index(_Packs) + 1]
    module.__dict__.pop("_decoded", None)
    for leaf, packed in found.items():
        del module._modules[leaf + _SUFFIX]
        module.register_parameter(leaf, dense(packed))
