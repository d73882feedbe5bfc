"""The files of transformers in a checkpoint: configuration and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks

from .errors import CheckpointError
from .files import read_json
from .settings_checks import CONFIG, TOKENIZER, check_numbers, check_settings

__all__ = [
    "at_most",
    "is_language_model",
    "model_skeleton",
    "read_tokenizer",
    "rebuild_model",
    "write_transformers_files",
]

_METHOD = {"quant_method": "pvopt"}
# Masks and tables of positions beside the weights: 256 MiB, or four times the weights.
_BUFFER_BYTES = 1 << 28


def is_language_model(model: nn.Module) -> bool:
    """Tell whether a model is one of transformers, which its folder's configuration can rebuild."""
    return hasattr(getattr(model, "config", None), "save_pretrained")


def write_transformers_files(
    folder: Path,
    model: nn.Module,
    tokenizer: Any = None,
    quantization: Mapping[str, Any] | None = _METHOD,
) -> None:
    """Write what transformers needs to rebuild a model; nothing for models of another kind.

    Args:
        folder: where to.
        model: any module; those of transformers have ``config`` and ``generation_config``.
        tokenizer: with ``save_pretrained``, or None.
        quantization: what the configuration says of how the model is quantized; None for nothing.
    """
    for part in (
        getattr(model, "config", None),
        getattr(model, "generation_config", None),
        tokenizer,
    ):
        write: Any = getattr(part, "save_pretrained", None)
        if write is not None:
            write(str(folder))
    file = folder / CONFIG
    if is_language_model(model) and file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("quantization_config", None)
        if quantization is not None:
            config["quantization_config"] = quantization
        text = json.dumps(config, indent=2)
        file.write_text(text + "\n", encoding="utf-8")


def rebuild_model(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Make a causal language model from ``config.json``, with arbitrary weights.

    Args:
        folder: with the files of transformers.
        dtype: floating dtype of the weights.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        CheckpointError: if there is no usable ``config.json``.
        ImportError: without transformers.
    """
    from transformers import AutoModelForCausalLM

    config = _config(folder)
    with _described(folder), torch.random.fork_rng(devices=[]):  # it draws from the global one
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    return model.eval()


def model_skeleton(folder: Path, num_tensors: int) -> nn.Module:
    """Make the model of ``config.json`` without memory: its weights have shapes alone.

    Args:
        folder: with the files of transformers.
        num_tensors: how many weights there are; a configuration of many more is refused early.

    Raises:
        CheckpointError: if there is no usable ``config.json``, or its model needs far more tensors
            or far more memory beside its weights.
        ImportError: without transformers.
    """
    from transformers import AutoModelForCausalLM

    content = read_json(folder, CONFIG, strict=False)
    check_numbers(folder / CONFIG, content, max(1000, num_tensors))
    config = _config(folder)
    with _described(folder), at_most(20 * num_tensors + 1000), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    weights = sum(p.nbytes for p in model.parameters())
    if sum(b.nbytes for b in model.buffers()) > max(_BUFFER_BYTES, 4 * weights):
        raise CheckpointError(f"{folder / CONFIG}: its model needs too large tables")
    return model


def _config(folder: Path) -> Any:
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError(
            f"{file}: is missing, so the model cannot be rebuilt; pass the model to be filled"
        )
    check_settings(folder)
    from transformers import AutoConfig

    with _described(folder):
        config: Any = AutoConfig.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the rebuilt model is a dense one
    return config


@contextmanager
def _described(folder: Path) -> Iterator[None]:
    """Turn whatever transformers raises for a configuration into a CheckpointError."""
    try:
        yield
    except (CheckpointError, ImportError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{folder / CONFIG}: describes no causal language model ({error})"
        ) from error


@contextmanager
def at_most(number: int) -> Iterator[None]:
    """Stop the construction of a model that has more modules and parameters than a number.

    Raises:
        CheckpointError: within the block.
    """
    count = 0

    def add(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > number:
            raise CheckpointError("the configured model has far more layers than there are weights")

    handles = [
        hooks.register_module_parameter_registration_hook(add),
        hooks.register_module_module_registration_hook(add),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def read_tokenizer(folder: Path) -> Any:
    """Load a tokenizer.

    Args:
        folder: with the files of transformers.

    Returns:
        A transformers tokenizer.

    Raises:
        CheckpointError: if there is none.
        ImportError: without transformers.
    """
    from transformers import AutoTokenizer

    if not (folder / TOKENIZER).is_file():
        raise CheckpointError(f"{folder}: has no tokenizer ({TOKENIZER} is missing)")
    check_settings(folder)
    try:
        return AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be read ({error})") from error
