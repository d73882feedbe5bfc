"""The weights of a model's layers: where they are, and which way their matrices lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from pvopt.core.views import MatrixView
from pvopt.spaces.contract import Space
from pvopt.spaces.zero_row import ZeroRow

from .experts import experts_view

__all__ = ["LayerWeight", "Place", "layer_weights"]


@dataclass(frozen=True)
class Place:
    """Where a module holds a weight; a tied weight has several.

    Args:
        module: name of the layer.
        names: of the weight: that of its parameter, and how the layer itself calls it.
        usual: whether patterns that name no layer, such as ``"*"``, mean it too.
        left: why they do not.
        view: how the tensor holds matrices.
        space: in which a part of the tensor stays as it is, or None.
    """

    module: str
    names: tuple[str, ...]
    usual: bool = True
    left: str = ""
    view: MatrixView = field(default_factory=MatrixView)
    space: Space | None = None


@dataclass(frozen=True)
class LayerWeight:
    """A parameter of two or more dimensions.

    Args:
        name: first name of the parameter.
        shape: of the parameter.
        places: every place that is known to be the weight of a layer; none for other parameters.
        aliases: all names of the parameter.
    """

    name: str
    shape: tuple[int, ...]
    places: tuple[Place, ...]
    aliases: tuple[str, ...]

    @property
    def usual(self) -> bool:
        """Whether patterns that name no layer mean it."""
        return bool(self.places) and all(place.usual for place in self.places)

    @property
    def left(self) -> str:
        """Why such patterns leave it dense."""
        reasons = [place.left for place in self.places if not place.usual]
        return reasons[0] if reasons else "not the weight of a known kind of layer"

    @property
    def view(self) -> MatrixView:
        """How the tensor holds matrices."""
        return next((place.view for place in self.places), MatrixView())

    @property
    def space(self) -> Space | None:
        """In which a part of the tensor stays as it is, or None."""
        return next((place.space for place in self.places if place.space is not None), None)


def layer_weights(model: nn.Module) -> dict[str, LayerWeight]:
    """Return all parameters of two or more dimensions by name, in the model's order.

    Args:
        model: any module.

    Raises:
        ValueError: for a parameter whose shape is not known yet.

    Example:
        >>> from torch import nn
        >>> from pvopt.selection.layers import layer_weights
        >>> model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 3), nn.LSTM(3, 5))
        >>> found = layer_weights(model)
        >>> [name for name, weight in found.items() if weight.usual]
        ['1.weight', '2.weight_ih_l0', '2.weight_hh_l0']
    """
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"{name!r} has no shape yet: call the model on a batch first")
        aliases.setdefault(id(parameter), []).append(name)
    places: dict[int, list[Place]] = {}
    for name, module in model.named_modules():
        for leaf, place in _places(name, module):
            try:
                parameter = module.get_parameter(leaf)
            except AttributeError:
                continue  # a weight that the layer does without
            places.setdefault(id(parameter), []).append(place)
    return {
        name: LayerWeight(name, tuple(p.shape), tuple(places.get(id(p), ())), tuple(aliases[id(p)]))
        for name, p in model.named_parameters()
        if p.is_floating_point() and p.dim() > 1 and p.numel() > 0
    }


def _places(name: str, module: nn.Module) -> Iterator[tuple[str, Place]]:
    """Yield the parameters of a module that are weights of a layer, from the module's view."""

    def place(leaf: str, *others: str, **settings: object) -> tuple[str, Place]:
        names = tuple(f"{name}.{own}".lstrip(".") for own in (leaf, *others))
        return leaf, Place(name, names, **settings)  # type: ignore[arg-type]

    for weight, settings in _weights(module):
        leaf, left = _present(module, weight)
        if left:
            settings = {**settings, "usual": False, "left": left}
        yield place(leaf, weight, **settings) if leaf != weight else place(leaf, **settings)


def _weights(module: nn.Module) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the weights of a layer by the layer's own names, and what is special about them."""
    if isinstance(module, nn.Linear):
        yield "weight", {}
    elif isinstance(module, _ConvNd):
        settings: dict[str, object] = {"view": MatrixView(transposed=module.transposed)}
        if module.groups > 1 and module.groups == module.in_channels:
            settings |= {"usual": False, "left": "a depthwise convolution, which has no matrix"}
        yield "weight", settings
    elif any(kind.__name__ == "Conv1D" for kind in type(module).__mro__):
        yield "weight", {"view": MatrixView(transposed=True)}  # of transformers: [in, out]
    elif isinstance(module, nn.RNNBase):
        for leaf in module._flat_weights_names:
            if leaf.startswith("weight"):
                yield leaf, {}
    elif isinstance(module, nn.RNNCellBase):
        yield from (("weight_ih", {}), ("weight_hh", {}))
    elif isinstance(module, nn.MultiheadAttention):
        yield "in_proj_weight", {}
        yield from ((f"{which}_proj_weight", {}) for which in "qkv")
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        yield "weight", {"usual": False, "left": "an embedding", "space": _padding(module)}
    else:
        for leaf, parameter in module.named_parameters(recurse=False):
            view = experts_view(module, leaf, parameter)
            if view is not None:
                yield leaf, {"view": view}


def _padding(module: nn.Embedding | nn.EmbeddingBag) -> ZeroRow | None:
    """Return the space in which the padding row stays zero, if it is."""
    row = module.padding_idx
    if row is None or not isinstance(module.weight, torch.Tensor) or module.weight.is_meta:
        return None
    return None if bool(module.weight.detach()[row].any()) else ZeroRow(row=row)


def _present(module: nn.Module, weight: str) -> tuple[str, str]:
    """Return the name of the parameter that makes a weight, and why to leave it alone.

    Weight norm and spectral norm scale rows or the whole weight: what is quantized under them is
    quantized after them, but for a scale. So it is under a mask of pruning.
    """
    if is_parametrized(module, weight):
        chain = module.parametrizations[weight]  # type: ignore[index]
        kinds = [type(step).__name__ for step in chain]  # type: ignore[union-attr]
        leaf = "original1" if kinds == ["_WeightNorm"] else "original"
        known = kinds in (["_WeightNorm"], ["_SpectralNorm"])
        left = "" if known else f"made by {', '.join(kinds)}, which is no scale"
        return f"parametrizations.{weight}.{leaf}", left
    if weight not in module._parameters:
        for leaf in (f"{weight}_v", f"{weight}_orig"):
            if leaf in module._parameters:
                return leaf, ""
    return weight, ""
