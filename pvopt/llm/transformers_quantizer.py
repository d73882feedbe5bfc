"""Makes ``AutoModelForCausalLM.from_pretrained`` read our checkpoints: ``quant_method: pvopt``.

It is registered when both packages have been imported. Without pvopt, transformers finds empty
tensors under the names of the quantized weights and refuses their shapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from pvopt.formats import FORMATS, load_representations, read_metadata
from pvopt.formats.folders import one_generation
from pvopt.formats.native.tensors import check_files
from pvopt.layers import QuantizedLinear
from pvopt.parametrizations.representation import Representation

from .save_pretrained import SavePretrained

__all__ = ["PVOptConfig", "PVOptQuantizer"]


class _Patterns(list[str]):
    """A list, to which transformers 5.0 adds lists and newer releases sets."""

    def __or__(self, others: Iterable[str]) -> set[str]:
        return {*self, *others}


@register_quantization_config("pvopt")
class PVOptConfig(QuantizationConfigMixin):
    """What ``config.json`` says of a checkpoint; all else is in its ``pvopt.json``."""

    def __init__(self, **_: Any) -> None:
        self.quant_method: Any = "pvopt"


@register_quantizer("pvopt")
class PVOptQuantizer(HfQuantizer):
    """Reads a checkpoint with transformers.

    Linear layers become :class:`pvopt.layers.QuantizedLinear`, which :func:`pvopt.layers.to_dense`
    turns back into weights to be tuned. Weights that several modules share, and weights of other
    modules, are decoded. ``save_pretrained`` and ``push_to_hub`` of such a model write codes and
    values as they are then.

    Example:
        >>> import tempfile
        >>> from transformers import AutoModelForCausalLM
        >>> from pvopt import SharedValues, quantize_
        >>> from pvopt.formats import save
        >>> from pvopt.llm import load_model
        >>> tiny, folder = load_model("tiny-llama"), tempfile.mkdtemp()
        >>> weights = quantize_(tiny.model, SharedValues(num_values=4))
        >>> _ = save(folder, tiny.model, weights)
        >>> model = AutoModelForCausalLM.from_pretrained(folder)
        >>> type(model.model.layers[0].mlp.up_proj).__name__
        'QuantizedLinear'
    """

    requires_calibration = True
    _representations: dict[str, Representation]
    _metadata: dict[str, Any]

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        if not checkpoint_files:
            raise ValueError("a checkpoint of pvopt must be loaded from its folder")
        folder = Path(checkpoint_files[0]).parent
        with one_generation(folder), FORMATS.reader(folder).transformers_files(folder):
            check_files(folder, [Path(file).name for file in checkpoint_files])
            self._representations = load_representations(folder)
            self._metadata = read_metadata(folder)
        for name in self._representations:
            # What the file holds under this name: nothing is allocated, drawn or missed.
            empty = torch.empty(0, dtype=torch.uint8, device="meta")
            owner, _, leaf = name.rpartition(".")
            module: nn.Module = model.get_submodule(owner)
            module.register_parameter(leaf, nn.Parameter(empty, requires_grad=False))
        known = model._keys_to_ignore_on_load_unexpected or ()
        model._keys_to_ignore_on_load_unexpected = _Patterns([*known, r"\.(codes|values)\."])

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        dtype, decoded = model.dtype, {}
        for name, rep in self._representations.items():
            empty = model.get_parameter(name)
            owners = [
                (path, leaf)
                for path, module in model.named_modules()
                for leaf, parameter in module._parameters.items()
                if parameter is empty
            ]
            moved = rep.to(device=empty.device)  # values keep their dtype, as they were saved
            module = model.get_submodule(owners[0][0])
            if len(owners) == 1 and type(module) is nn.Linear:
                layer = QuantizedLinear.from_representation(moved, module.bias)
                model.set_submodule(owners[0][0], layer.train(module.training))
                continue
            decoded[name] = moved
            dense = nn.Parameter(moved.decode().to(dtype))
            for path, leaf in owners:
                setattr(model.get_submodule(path), leaf, dense)
        model.save_pretrained = SavePretrained(model, decoded, self._metadata)
        del self._representations, self._metadata
        return model

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return False  # in transformers' own way: the model has a ``save_pretrained`` of its own

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True
