"""Models with quantized layers: replace linear layers in place, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pvopt.parametrizations.representation import Representation
from pvopt.weights import QuantizedWeights

from .quantized_linear import QuantizedLinear

__all__ = ["representations", "to_dense", "to_quantized"]


def to_quantized(
    model: nn.Module,
    representations: Mapping[str, Representation],
    *,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Replace linear layers by layers that keep codes and values alone, in place.

    The dense weights are gone then: for inference in little memory, and for tuning the values
    without a dense weight (give ``model.parameters()`` to any optimizer). Codes and values are
    copied; drop the representations to free theirs. The linear layers of SmolLM2-135M in 2x8g8
    take 28.6 MB with values in float16, 424.7 MB in dense float32.

    Args:
        model: the module that holds the layers.
        representations: by the name of the weight's parameter, such as
            :func:`pvopt.quantize_` returns them.
        dtype: of the values; None keeps theirs.

    Returns:
        The model.

    Raises:
        ValueError: if a name is not the weight of a linear layer, shapes differ, or the weight is
            shared with another module; nothing is changed then.
        WeightsChangedError: if the model holds other weights than its :class:`QuantizedWeights`
            decode to; nothing is changed then.

    Example:
        >>> import pvopt
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        >>> weights = pvopt.quantize_(model, pvopt.VectorCodebook(bits=2, group_size=2))
        >>> to_quantized(model, weights)[0].codes.entries.shape
        torch.Size([4, 4, 1])

    References:
        PV-Tuning (arXiv 2405.14852), section 4.3, the continuous phase alone.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    counts: dict[int, int] = {}
    for parameter in named.values():
        counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    for name, rep in representations.items():
        owner, _, leaf = name.rpartition(".")
        layer = model.get_submodule(owner) if name in named else None
        if not isinstance(layer, nn.Linear) or leaf != "weight":
            raise ValueError(f"{name!r} is not the weight of a linear layer of the model")
        if tuple(layer.weight.shape) != rep.shape:
            raise ValueError(
                f"representation of {name!r} must have shape {list(layer.weight.shape)}, "
                f"got {list(rep.shape)}"
            )
        if counts[id(layer.weight)] > 1:
            raise ValueError(f"{name!r} is shared with another module, which needs it dense")
        if not owner:
            raise ValueError("model must contain the linear layer, not be it")
    if isinstance(representations, QuantizedWeights) and representations.model is model:
        representations.check()
    for name, rep in representations.items():
        owner = name.rpartition(".")[0]
        layer = model.get_submodule(owner)
        assert isinstance(layer, nn.Linear)
        bias = layer.bias if isinstance(layer.bias, nn.Parameter) else None
        moved = rep.to(layer.weight.device)
        quantized = QuantizedLinear.from_representation(moved, bias, dtype=dtype)
        model.set_submodule(owner, quantized.train(layer.training))
    return model


def representations(model: nn.Module) -> dict[str, Representation]:
    """Return copies of codes and values of every quantized layer, by the name of its weight.

    Args:
        model: as :func:`to_quantized` returns it, perhaps tuned since.

    Example:
        >>> import pvopt
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
        >>> list(representations(to_quantized(model, weights)))
        ['0.weight']
    """
    return {
        f"{name}.weight".lstrip("."): layer.representation()
        for name, layer in model.named_modules()
        if isinstance(layer, QuantizedLinear)
    }


def to_dense(model: nn.Module, *, dtype: torch.dtype | None = None) -> QuantizedWeights:
    """Put linear layers with decoded weights in place of quantized ones, in place.

    Args:
        model: as :func:`to_quantized` returns it.
        dtype: of the dense weights; None for that of the values.

    Returns:
        The representations, bound to the model, as :class:`pvopt.PVOptimizer` and
        :func:`pvopt.formats.save` take them.

    Raises:
        ValueError: if the model itself is the quantized layer.

    Example:
        >>> import pvopt
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
        >>> weights = to_dense(to_quantized(model, weights))
        >>> torch.equal(model[0].weight, weights["0.weight"].decode())
        True
    """
    if isinstance(model, QuantizedLinear):
        raise ValueError("model must contain the quantized layers, not be one")
    found = representations(model)
    for name, rep in found.items():
        owner = name.rpartition(".")[0]
        layer = model.get_submodule(owner)
        assert isinstance(layer, QuantizedLinear)
        dense = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        dense.weight = nn.Parameter(rep.decode().to(dtype or rep.dtype))
        dense.bias = layer.bias  # pyright: ignore[reportAttributeAccessIssue]
        model.set_submodule(owner, dense.train(layer.training))
    return QuantizedWeights(model, found)
