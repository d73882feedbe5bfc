"""Models with quantized layers: codes and values in place of dense weights, and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from pvopt.parametrizations.representation import Representation
from pvopt.weights import QuantizedWeights

from .packed_weight import PackedWeight, pack_weight, packed_weights, unpack_weights
from .quantized_linear import QuantizedLinear

__all__ = ["dense_reasons", "representations", "to_dense", "to_quantized"]


def dense_reasons(
    model: nn.Module, representations: Mapping[str, Representation]
) -> dict[str, str]:
    """Tell which weights :func:`to_quantized` would refuse.

    Args:
        model: the module that holds the layers.
        representations: by the name of the weight's parameter.

    Returns:
        The reason by name, for each weight that must stay dense.

    Example:
        >>> from torch import nn
        >>> import pvopt
        >>> from pvopt.layers import dense_reasons
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        >>> model[1].weight = model[0].weight
        >>> dense_reasons(model, pvopt.quantize_(model, pvopt.SharedValues(num_values=2)))
        {'0.weight': "'0.weight' is shared with another module, which needs it dense"}
    """
    found = {}
    for name, rep in representations.items():
        try:
            _check(model, {name: rep})
        except ValueError as error:
            found[name] = str(error)
    return found


def to_quantized(
    model: nn.Module,
    representations: Mapping[str, Representation],
    *,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Let a model hold codes and values alone in place of some weights, in place.

    The dense weights are gone then: for inference in little memory, and for tuning the values
    without a dense weight (give ``model.parameters()`` to any optimizer). Codes and values are
    copied; drop the representations to free theirs. The linear layers of SmolLM2-135M in 2x8g8
    take 28.6 MB with values in float16, 424.7 MB in dense float32.

    A linear layer (or ``Conv1D`` of transformers) becomes a :class:`QuantizedLinear`. Any other
    layer, such as experts in one tensor, a convolution, or a linear layer with a ``forward`` of its
    own or with hooks, stays what it is: it reads its weight as before, which is decoded then.

    Args:
        model: the module that holds the layers.
        representations: by the name of the weight's parameter, such as
            :func:`pvopt.quantize_` returns them.
        dtype: of the values; None keeps theirs.

    Returns:
        The model.

    Raises:
        ValueError: if a name is not a weight of the model, shapes differ, the weight is shared with
            another module, the layer does not read it by its name (recurrent ones), or values are
            beyond the range of the dtype; nothing is changed then.
        WeightsChangedError: if the model holds other weights than its
            :class:`pvopt.QuantizedWeights` decode to; nothing is changed then.

    Example:
        >>> from torch import nn
        >>> import pvopt
        >>> from pvopt.layers import to_quantized
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        >>> weights = pvopt.quantize_(model, pvopt.VectorCodebook(bits=2, group_size=2))
        >>> to_quantized(model, weights)[0].codes.entries.shape
        torch.Size([4, 4, 1])

    References:
        PV-Tuning (arXiv 2405.14852), section 4.3, the continuous phase alone.
    """
    _check(model, representations)
    made: dict[str, nn.Module] = {}
    for name, rep in representations.items():
        owner, _, leaf = name.rpartition(".")
        layer, weight = model.get_submodule(owner), model.get_parameter(name)
        moved = rep.to(weight.device)
        try:
            if leaf == "weight" and _multiplies(layer):
                made[name] = _linear(layer, moved, dtype)
            else:
                made[name] = PackedWeight(moved, dtype=dtype, dense_dtype=weight.dtype)
        except ValueError as error:
            raise ValueError(f"cannot convert {name!r}: {error}") from error
    for name, module in made.items():
        owner, _, leaf = name.rpartition(".")
        if isinstance(module, PackedWeight):
            pack_weight(model.get_submodule(owner), leaf, module)
        else:
            model.set_submodule(owner, module)
    return model


def _check(model: nn.Module, representations: Mapping[str, Representation]) -> None:
    """Raise a ValueError unless codes and values can take the place of every weight."""
    named = dict(model.named_parameters(remove_duplicate=False))
    counts: dict[int, int] = {}
    for parameter in named.values():
        counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    for name, rep in representations.items():
        if name not in named:
            raise ValueError(f"{name!r} is not a weight of the model")
        if tuple(named[name].shape) != rep.shape:
            raise ValueError(
                f"representation of {name!r} must have shape {list(named[name].shape)}, "
                f"got {list(rep.shape)}"
            )
        if counts[id(named[name])] > 1:
            raise ValueError(f"{name!r} is shared with another module, which needs it dense")
        owner = name.rpartition(".")[0]
        if not owner:
            raise ValueError("model must contain the layer, not be it")
        if isinstance(model.get_submodule(owner), nn.RNNBase):
            raise ValueError(f"{name!r} must stay dense: recurrent layers keep a list of weights")
    if isinstance(representations, QuantizedWeights) and representations.model is model:
        representations.check()


def _multiplies(layer: nn.Module) -> bool:
    """Tell whether all that a layer does is to multiply by its weight and to add a bias."""
    kind = type(layer)
    of_transformers = kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
    # The output projection of attention is read, not called.
    called = not isinstance(layer, NonDynamicallyQuantizableLinear)
    called = called and "forward" not in layer.__dict__  # which some wrappers put there
    hooks = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        layer._backward_hooks,
        layer._backward_pre_hooks,
    )
    return (kind.forward is nn.Linear.forward or of_transformers) and called and not any(hooks)


def _linear(layer: nn.Module, rep: Representation, dtype: torch.dtype | None) -> QuantizedLinear:
    """Return a layer with codes and values, which remembers what it takes the place of."""
    bias = layer.bias if isinstance(layer.bias, nn.Parameter) else None
    quantized = QuantizedLinear.from_representation(rep.matrices, bias, dtype=dtype)
    quantized.stored_as, quantized.dense_layer = rep.view, _shell(layer)
    return quantized.train(layer.training)


def _shell(layer: nn.Module) -> list[nn.Module]:
    """Return a copy of a layer without its parameters, in a list: no part of a model."""
    shell = copy.copy(layer)
    shell.__dict__["_parameters"] = dict.fromkeys(layer._parameters)
    return [shell]


def representations(model: nn.Module) -> dict[str, Representation]:
    """Return copies of codes and values of every quantized weight, by its name.

    Args:
        model: as :func:`to_quantized` returns it, perhaps tuned since.

    Example:
        >>> from torch import nn
        >>> import pvopt
        >>> from pvopt.layers import representations, to_quantized
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
        >>> list(representations(to_quantized(model, weights)))
        ['0.weight']
    """
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            found[f"{name}.weight".lstrip(".")] = _stored(layer)
        for leaf, packed in packed_weights(layer).items():
            found[f"{name}.{leaf}".lstrip(".")] = packed.representation()
    return found


def _stored(layer: QuantizedLinear) -> Representation:
    rep, view = layer.representation(), layer.stored_as
    if view.plain:
        return rep
    shape = tuple(view.join([torch.empty(rep.shape, device="meta")]).shape)
    return Representation.joined([rep], view, shape)


def to_dense(model: nn.Module, *, dtype: torch.dtype | None = None) -> QuantizedWeights:
    """Put decoded weights in place of codes and values, in place; layers are what they were.

    Args:
        model: as :func:`to_quantized` returns it.
        dtype: of the dense weights; None for that of the values.

    Returns:
        The representations, bound to the model, as :class:`pvopt.PVOptimizer` and
        :func:`pvopt.formats.save` take them.

    Raises:
        ValueError: if the model itself is the quantized layer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import pvopt
        >>> from pvopt.layers import to_dense, to_quantized
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> weights = pvopt.quantize_(model, pvopt.UniformGrid(bits=2))
        >>> weights = to_dense(to_quantized(model, weights))
        >>> torch.equal(model[0].weight, weights["0.weight"].decode())
        True
    """
    if isinstance(model, QuantizedLinear):
        raise ValueError("model must contain the quantized layers, not be one")
    found = representations(model)

    def parameter(rep: Representation) -> nn.Parameter:
        return nn.Parameter(rep.decode().to(dtype or rep.dtype))

    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLinear):
            dense = layer.dense_layer[0] if layer.dense_layer else _plain(layer)
            dense._parameters["weight"] = parameter(found[f"{name}.weight"])
            dense._parameters["bias"] = layer.bias
            model.set_submodule(name, dense.train(layer.training))
        elif packed_weights(layer):
            unpack_weights(layer, lambda packed: parameter(packed.representation()))
    return QuantizedWeights(model, found)


def _plain(layer: QuantizedLinear) -> nn.Module:
    return nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
