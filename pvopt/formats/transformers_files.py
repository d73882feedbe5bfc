"""The files of transformers in a checkpoint: configuration and tokenizer.

They are data. What would make transformers load code, kernels or files from elsewhere is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules import module as hooks

from .errors import CheckpointError
from .files import read_json, regular_file, root_of

__all__ = [
    "CONFIG",
    "check_model_folder",
    "check_settings",
    "is_language_model",
    "model_skeleton",
    "read_tokenizer",
    "rebuild_model",
    "write_transformers_files",
]

CONFIG = "config.json"
_TOKENIZER = "tokenizer_config.json"
_SETTINGS = (CONFIG, "generation_config.json", _TOKENIZER)
_METHOD = {"quant_method": "pvopt"}
# What transformers reads in the folder of a model.
_READ = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"}
# Names that transformers looks up on the hub have a slash.
_PLAIN_WORD = re.compile(r"\w*")
_NUMBER_OF = re.compile(r"(^|_)(layers?|blocks|depth|experts)(_|$)")
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


def check_settings(folder: Path) -> None:
    """Raise unless the JSON files of a folder are of bounded size and name nothing outside of it.

    Raises:
        CheckpointError: for modules, kernels and files that transformers would load from elsewhere,
            and for files that cannot be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.transformers_files import check_settings
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
        >>> check_settings(folder)
        Traceback (most recent call last):
        ...
        pvopt.formats.errors.CheckpointError: ...config.json: auto_map names code, which is not run
    """
    for name in _SETTINGS:
        if (folder / name).exists():
            content = read_json(folder, name, strict=False)
            if not isinstance(content, dict):
                raise CheckpointError(f"{folder / name}: must hold an object")
            _check_names(folder / name, content)


def _check_names(file: Path, content: Any) -> None:
    if isinstance(content, list):
        for item in content:
            _check_names(file, item)
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        word = key.strip("_")
        if value and (word == "auto_map" or word == "custom_pipelines"):
            raise CheckpointError(f"{file}: {key} names code, which is not run")
        kernel = word.endswith("_implementation") and not _plain_words(value)
        if kernel or (value and word in ("use_kernels", "kernel_config", "fusion_config")):
            raise CheckpointError(f"{file}: {key} names a kernel, which is not loaded: {value!r}")
        outside = word.endswith("_file") or word == "transformers_weights"
        if value and isinstance(value, str) and outside:
            raise CheckpointError(f"{file}: {key} names a file, which is not read: {value!r}")
        _check_names(file, value)


def _plain_words(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_plain_words, value.values()))
    return value is None or (isinstance(value, str) and bool(_PLAIN_WORD.fullmatch(value)))


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
    _check_numbers(folder / CONFIG, content, max(1000, num_tensors))
    config = _config(folder)
    with _described(folder), _at_most(20 * num_tensors + 1000), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    weights = sum(p.nbytes for p in model.parameters())
    if sum(b.nbytes for b in model.buffers()) > max(_BUFFER_BYTES, 4 * weights):
        raise CheckpointError(f"{folder / CONFIG}: its model needs too large tables")
    return model


def check_model_folder(folder: Path) -> None:
    """Raise unless the files of a model of transformers are regular and of bounded size.

    Args:
        folder: of somebody else's model, as ``save_pretrained`` writes it.

    Raises:
        CheckpointError: for a FIFO, a device, a socket, a link to elsewhere, JSON that cannot be
            read, or a configuration of far more layers than there are weights.

    Example:
        >>> import os
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.transformers_files import check_model_folder
        >>> folder = Path(tempfile.mkdtemp())
        >>> os.mkfifo(folder / "model.safetensors")
        >>> check_model_folder(folder)
        Traceback (most recent call last):
        ...
        pvopt.formats.errors.CheckpointError: ...model.safetensors: is a FIFO, only regular ...
    """
    root = root_of(folder)
    for entry in sorted(folder.iterdir()):
        if entry.suffix in _READ and not entry.is_dir():
            regular_file(root, entry.relative_to(root).as_posix())
            if entry.name in _SETTINGS:
                read_json(folder, entry.name, within=root, strict=False)
    stored = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="pt") as tensors:
                stored += len(tensors.keys())
        except Exception as error:
            raise CheckpointError(f"{file}: cannot be read as safetensors ({error})") from error
    if stored and (folder / CONFIG).exists():
        content = read_json(folder, CONFIG, within=root, strict=False)
        _check_numbers(folder / CONFIG, content, max(1000, stored))


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


def _check_numbers(file: Path, content: Any, most: int) -> None:
    """Raise if a configuration asks for more layers than there can be."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, dict):
            _check_numbers(file, value, most)
        elif isinstance(value, int | float) and _NUMBER_OF.search(key) and value > most:
            raise CheckpointError(f"{file}: {key} is {value}, far more than there are weights")


@contextmanager
def _at_most(number: int) -> Iterator[None]:
    """Stop the construction of a model that has more modules and parameters than a number."""
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

    if not (folder / _TOKENIZER).is_file():
        raise CheckpointError(f"{folder}: has no tokenizer ({_TOKENIZER} is missing)")
    check_settings(folder)
    try:
        return AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise CheckpointError(f"{folder}: the tokenizer cannot be read ({error})") from error
