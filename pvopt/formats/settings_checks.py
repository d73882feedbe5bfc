"""What the settings of a model's folder may say, before transformers reads them.

They are data. What would make it load code, kernels or files from elsewhere is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .errors import CheckpointError
from .files import is_plain_name, read_json, regular_file, root_of

__all__ = ["CONFIG", "TOKENIZER", "check_model_folder", "check_numbers", "check_settings"]

CONFIG = "config.json"
TOKENIZER = "tokenizer_config.json"
_SETTINGS = (CONFIG, "generation_config.json", TOKENIZER)
# What transformers reads in the folder of a model.
_READ = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"}
# Names that transformers looks up on the hub have a slash.
_PLAIN_WORD = re.compile(r"\w*")
# Without weights beside it, a configuration may ask for any number of layers or experts.
_MOST_LAYERS = 10_000
_NUMBER_OF = re.compile(r"(^|_)(layers?|blocks|depth|experts)(_|$)")


def check_settings(folder: Path) -> None:
    """Raise unless the JSON files of a folder are of bounded size and name nothing outside of it.

    Raises:
        CheckpointError: for modules, kernels and files that transformers would load from elsewhere,
            and for files that cannot be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.settings_checks import check_settings
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
        _check_kernel(file, key, value)
        outside = word.endswith("_file") or word == "transformers_weights"
        if value and isinstance(value, str) and outside:
            raise CheckpointError(f"{file}: {key} names a file, which is not read: {value!r}")
        _check_names(file, value)


def _check_kernel(file: Path, key: str, value: Any) -> None:
    word = key.strip("_")
    kernel = word.endswith("_implementation") and not _plain_words(value)
    if kernel or (value and word in ("use_kernels", "kernel_config", "fusion_config")):
        raise CheckpointError(f"{file}: {key} names a kernel, which is not loaded: {value!r}")


def _check_kernels(file: Path, content: Any) -> None:
    """Raise if a configuration names a kernel; code that it names is never run anyway."""
    for key, value in content.items() if isinstance(content, dict) else ():
        _check_kernel(file, key, value)
        _check_kernels(file, value)


def _plain_words(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_plain_words, value.values()))
    return value is None or (isinstance(value, str) and bool(_PLAIN_WORD.fullmatch(value)))


def check_model_folder(folder: Path) -> None:
    """Raise unless the files of a model of transformers are regular and of bounded size.

    Args:
        folder: of somebody else's model, as ``save_pretrained`` writes it.

    Raises:
        CheckpointError: for a FIFO, a device, a socket, a link to elsewhere, JSON that cannot be
            read, kernels and weights of other places, or a configuration of far more layers than
            there are weights.

    Example:
        >>> import os
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.settings_checks import check_model_folder
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
            if entry.name in _SETTINGS or entry.name.endswith(".index.json"):
                _check_content(entry, read_json(folder, entry.name, within=root, strict=False))
    stored = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="pt") as tensors:
                stored += len(tensors.keys())
        except Exception as error:
            raise CheckpointError(f"{file}: cannot be read as safetensors ({error})") from error
    if (folder / CONFIG).exists():
        content = read_json(folder, CONFIG, within=root, strict=False)
        check_numbers(folder / CONFIG, content, max(1000, stored) if stored else None)


def _check_content(file: Path, content: Any) -> None:
    """Raise unless a settings file is an object that names no kernel and no weights elsewhere."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: must hold an object")
    _check_kernels(file, content)
    weights = content.get("weight_map")
    for name in weights.values() if isinstance(weights, dict) else ():
        if not is_plain_name(name):
            raise CheckpointError(f"{file}: names a file outside of the folder: {name!r}")


def check_numbers(file: Path, content: Any, most: int | None = None) -> None:
    """Raise if a configuration asks for more layers than there can be.

    Args:
        file: that holds it.
        content: of the file.
        most: number of anything, by the weights that are there; None where these are not known.

    Raises:
        CheckpointError: naming the setting.

    Example:
        >>> from pathlib import Path
        >>> from pvopt.formats.settings_checks import check_numbers
        >>> check_numbers(Path("config.json"), {"num_hidden_layers": 10**6}, most=1000)
        Traceback (most recent call last):
        ...
        pvopt.formats.errors.CheckpointError: config.json: num_hidden_layers is 1000000, far ...
    """
    limit = _MOST_LAYERS if most is None else most
    than = "any model has" if most is None else "there are weights"
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, dict):
            check_numbers(file, value, most)
        elif isinstance(value, int | float) and _NUMBER_OF.search(key) and value > limit:
            raise CheckpointError(f"{file}: {key} is {value}, far more than {than}")
