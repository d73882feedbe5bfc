"""The format of llama.cpp: one file with tensors, tokenizer and settings."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from pvopt.formats.contract import FORMATS, Checkpoint, Reader, Writer
from pvopt.formats.errors import CheckpointError
from pvopt.formats.exports import EXPORT, foreign_files, write_export
from pvopt.formats.files import regular_file
from pvopt.formats.folders import one_generation
from pvopt.formats.models import filled
from pvopt.formats.settings_checks import CONFIG
from pvopt.parametrizations.representation import Representation

from .architecture import config_of
from .blocks import BLOCKS
from .container import Container, read_container
from .names import heads_of, name_in_model
from .positions import FACTORS
from .tensors import read_tensor
from .tokenizers import tokenizer_of
from .writing import unwritable, write_file

__all__ = ["GGUF", "holds_gguf"]

_FILE = "model.gguf"


@FORMATS.register
class GGUF(Reader, Writer):
    """Llamas for llama.cpp, Ollama and whatever else reads GGUF.

    Blocks that hold a scale in float16 and integers are codes and values, and back: Q4_0, Q4_1,
    Q8_0, Q2_0, Q1_0, TQ1_0, TQ2_0. Tensors of other types are read as dense ones. Everything is
    read in float32, as every reader decodes it.

    Args:
        blocks: names of the types that may be written, those preferred first.

    Raises:
        ValueError: if there is no type of a name.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pvopt.formats.gguf import GGUF
        >>> GGUF().match(Path(tempfile.mkdtemp()))
        False
        >>> GGUF().with_settings("TQ2_0,Q4_0").blocks
        ('TQ2_0', 'Q4_0')

    References:
        ggml, ``docs/gguf.md``; the block types of its ``ggml-common.h``.
    """

    name = "gguf"
    usage = "llama-server --model {folder}/model.gguf"
    suffix = ".gguf"
    marker = EXPORT
    decodes_in = torch.float32

    def __init__(self, blocks: Sequence[str] = tuple(BLOCKS)) -> None:
        unknown = [name for name in blocks if name not in BLOCKS]
        if unknown or not blocks:
            known = ", ".join(BLOCKS)
            raise ValueError(f"blocks must be some of {known}, got {unknown or 'none'}")
        self.blocks = tuple(blocks)

    def with_settings(self, text: str) -> GGUF:
        return GGUF(text.split(","))

    def match(self, folder: Path) -> bool:
        return any(entry.suffix == self.suffix for entry in folder.iterdir())

    def can_write(self, checkpoint: Checkpoint) -> str | None:
        return unwritable(checkpoint, self.blocks)

    def foreign(self, folder: Path) -> Collection[str]:
        return foreign_files(folder)

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        write_file(folder / _FILE, checkpoint, self.blocks)
        write_export(folder, self.name)

    @contextmanager
    def transformers_files(self, folder: Path) -> Iterator[Path]:
        container = _open(folder)
        with _config_folder(container) as scratch:
            try:
                tokenizer = tokenizer_of(container.settings)
            except ValueError as error:
                raise CheckpointError(f"{container.file}: {error}") from error
            if tokenizer is not None:
                tokenizer.save_pretrained(str(scratch))
            yield scratch

    def read(self, folder: Path, model: nn.Module | None) -> Checkpoint:
        if not folder.is_dir():
            return self._read(folder, model)
        with one_generation(folder):
            return self._read(folder, model)

    def _read(self, path: Path, model: nn.Module | None) -> Checkpoint:
        container = _open(path)
        try:
            config = _config(container)
            reps: dict[str, Representation] = {}
            others: dict[str, Tensor] = {}
            for theirs in container.tensors:
                if theirs == FACTORS:
                    continue
                name = name_in_model(theirs)
                if name is None:
                    raise ValueError(f"{theirs!r} is no tensor of a Llama that is read")
                heads = heads_of(name, config["num_attention_heads"], config["num_key_value_heads"])
                found = read_tensor(container, theirs, heads)
                if isinstance(found, Representation):
                    reps[name] = found
                else:
                    others[name] = found
        except CheckpointError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{container.file}: {error}") from error
        return filled(container.file, model, reps, others, _config_folder(container))


def holds_gguf(path: Path) -> bool:
    """Tell whether a path is that of a GGUF file, or of a folder whose model is in one.

    Example:
        >>> from pathlib import Path
        >>> from pvopt.formats.gguf import holds_gguf
        >>> holds_gguf(Path("model.gguf"))  # there is none
        False
    """
    if not path.is_dir():
        return path.suffix == GGUF.suffix and path.exists()
    return not (path / CONFIG).exists() and GGUF().match(path)


def _open(path: Path) -> Container:
    if path.is_dir():
        files = sorted(entry.name for entry in path.iterdir() if entry.suffix == GGUF.suffix)
        if len(files) != 1:
            raise CheckpointError(
                f"{path}: holds {len(files)} GGUF files ({', '.join(files[:3])} ...); name one"
            )
        return read_container(regular_file(path, files[0]))
    real = path.resolve()  # whoever names a file may name a link
    return read_container(regular_file(real.parent, real.name))


def _config(container: Container) -> dict[str, Any]:
    """Return ``config.json`` of a file.

    Raises:
        ValueError: if the file holds no Llama.
    """
    names = {*container.tensors}
    embeddings = container.tensors.get("token_embd.weight")
    if embeddings is None:
        raise ValueError("it has no tensor 'token_embd.weight'")
    biased = [name for name in names if name.endswith(".bias")]
    factors = read_tensor(container, FACTORS, None) if FACTORS in names else None
    if isinstance(factors, Representation):
        raise ValueError(f"{FACTORS} must be numbers, got blocks")
    return config_of(
        container.settings,
        embeddings.shape[0],
        lambda part: any(f".{part}_" in name for name in biased),
        "output.weight" not in names,
        factors,
    )


@contextmanager
def _config_folder(container: Container) -> Iterator[Path]:
    """Give a folder with the configuration of a file; messages name the file."""
    with TemporaryDirectory() as scratch:
        try:
            config = _config(container)
            (Path(scratch) / CONFIG).write_text(json.dumps(config), encoding="utf-8")
            yield Path(scratch)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(scratch, str(container.file))) from error
        except ValueError as error:
            raise CheckpointError(f"{container.file}: {error}") from error
