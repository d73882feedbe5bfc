"""The files of transformers in a checkpoint: configuration and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import CheckpointError
from .folders import complete_folder

__all__ = ["load_tokenizer", "rebuild_model", "write_transformers_files"]

_CONFIG = "config.json"


def write_transformers_files(folder: Path, model: nn.Module, tokenizer: Any = None) -> None:
    """Write what transformers needs to rebuild a model; nothing for models of another kind.

    Args:
        folder: where to.
        model: any module; those of transformers have ``config`` and ``generation_config``.
        tokenizer: with ``save_pretrained``, or None.
    """
    for part in (
        getattr(model, "config", None),
        getattr(model, "generation_config", None),
        tokenizer,
    ):
        write: Any = getattr(part, "save_pretrained", None)
        if write is not None:
            write(str(folder))


def rebuild_model(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Make a causal language model from ``config.json``, with arbitrary weights.

    Args:
        folder: the checkpoint.
        dtype: floating dtype of the weights.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        CheckpointError: if there is no usable ``config.json``.
        ImportError: without transformers.
    """
    file = folder / _CONFIG
    if not file.is_file():
        raise CheckpointError(
            f"{file}: is missing, so the model cannot be rebuilt; pass the model to be filled"
        )
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder))
        with torch.random.fork_rng(devices=[]):  # initialization draws from the global generator
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: describes no causal language model ({error})") from error
    return model.eval()


def load_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer that was saved with a checkpoint.

    Args:
        folder: the checkpoint.

    Returns:
        A transformers tokenizer.

    Raises:
        CheckpointError: if there is none.
        ImportError: without transformers.

    Example:
        >>> import tempfile
        >>> from pvopt import SharedValues, quantize_
        >>> from pvopt.formats import save
        >>> from pvopt.llm import load_model
        >>> tiny, folder = load_model("tiny-llama"), tempfile.mkdtemp()
        >>> weights = quantize_(tiny.model, SharedValues(num_values=4))
        >>> _ = save(folder, tiny.model, weights, tokenizer=tiny.tokenizer)
        >>> load_tokenizer(folder).encode("Hi")
        [72, 105]
    """
    from transformers import AutoTokenizer

    path = complete_folder(folder)
    if not (path / "tokenizer_config.json").is_file():
        raise CheckpointError(f"{path}: has no tokenizer (tokenizer_config.json is missing)")
    try:
        return AutoTokenizer.from_pretrained(str(path))
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: the tokenizer cannot be read ({error})") from error
