"""``save_pretrained`` of models that transformers has read from one of our checkpoints."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn
from transformers.utils.hub import convert_file_size_to_int

from pvopt.engine.agreement import check_decoded
from pvopt.formats import Checkpoint, CheckpointError
from pvopt.formats.native import Native
from pvopt.formats.shards import INDEX, holds_tensors
from pvopt.layers import QuantizedLinear
from pvopt.layers.conversion import representations
from pvopt.parametrizations.representation import Representation
from pvopt.weights import QuantizedWeights

__all__ = ["SavePretrained"]


@dataclass
class SavePretrained:
    """Takes the place of a model's ``save_pretrained``: writes codes and values as they are.

    Args:
        model: with quantized layers.
        decoded: weights that were decoded, as several modules share them or read them themselves.
        metadata: of the checkpoint that was read.
    """

    model: Any
    decoded: Mapping[str, Representation] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        **others: Any,
    ) -> None:
        """Write a checkpoint, and leave other files of the folder alone, as transformers does.

        Args:
            save_directory: where to; made if it is not there.
            is_main_process: whether to write at all.
            state_dict: must be that of the model, if it is given.
            push_to_hub: must be False, ``model.push_to_hub`` does it.
            max_shard_size: bytes that one file of tensors has at most, unless a tensor alone is
                larger.
            variant: must be None.
            others: what transformers takes besides, which has no effect.

        Raises:
            CheckpointError: if a file cannot be written.
            ValueError: if an argument asks for what the format has not.
            WeightsChangedError: if a weight that was decoded has changed since.
        """
        if getattr(self.model, "_hf_peft_config_loaded", False):  # adapters alone
            return type(self.model).save_pretrained(
                self.model, save_directory, is_main_process, state_dict, push_to_hub,
                max_shard_size, variant, **others,
            )  # fmt: skip
        if push_to_hub:
            raise ValueError("push_to_hub must be False: call model.push_to_hub(repository)")
        if variant is not None:
            raise ValueError(f"variant must be None, a checkpoint has none, got {variant!r}")
        if state_dict is not None and state_dict.keys() != self.model.state_dict().keys():
            raise ValueError("state_dict must be that of the model, got other names")
        shard_bytes = convert_file_size_to_int(max_shard_size)
        if shard_bytes < 1:
            raise ValueError(f"max_shard_size must be positive, got {max_shard_size!r}")
        check_decoded((n, self.model.get_parameter(n), rep) for n, rep in self.decoded.items())
        if not is_main_process:
            return None
        dense = _dense(self.model, {})
        reps = {**self.decoded, **representations(self.model)}
        checkpoint = Checkpoint(dense, QuantizedWeights(dense, reps), self.metadata)
        folder, writer = Path(save_directory), Native(shard_bytes)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder, prefix=".partial") as scratch:
                made = Path(scratch)
                writer.write(made, checkpoint)
                names = sorted(entry.name for entry in made.iterdir())
                for name in sorted(names, key=writer.marker.__eq__):  # what names the others last
                    os.replace(made / name, folder / name)
                _remove_shards(folder, names)
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be written ({error})") from error
        return None


def _remove_shards(folder: Path, keep: Collection[str]) -> None:
    """Delete files of tensors that an older model has left, which readers would mix with ours."""
    for entry in folder.iterdir():
        if (entry.name == INDEX or holds_tensors(entry.name)) and entry.name not in keep:
            entry.unlink()


def _dense(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    """Return a model that shares everything but has linear layers, without memory for weights."""
    if id(module) in done:
        return done[id(module)]
    if isinstance(module, QuantizedLinear):
        size = module.in_features, module.out_features
        dtype = next(value.dtype for value in module.values.parameters())
        found: nn.Module = nn.Linear(*size, bias=False, device="meta", dtype=dtype)
        found.register_parameter("bias", module.bias)
    else:
        found = copy.copy(module)
        parts = {name: part and _dense(part, done) for name, part in module._modules.items()}
        found.__dict__["_modules"] = parts
    done[id(module)] = found
    return found
