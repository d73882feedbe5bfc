"""What cannot be loaded as a causal language model, each said in one sentence before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pvopt.formats import FORMATS, CheckpointError, LayerFormat

__all__ = [
    "DEQUANTIZED",
    "check_causal",
    "check_config",
    "check_finite",
    "check_folder",
    "check_length",
    "max_positions",
    "quantization_method",
]

#: What transformers makes dense layers of, exactly, where it is asked to.
DEQUANTIZED = ("fp8", "mxfp4")


def check_folder(folder: Path) -> None:
    """Refuse folders that hold something else than a model.

    Raises:
        ValueError: if it is a checkpoint, ours or one of others, or has no configuration.
    """
    for inside in (folder, folder / "checkpoint"):
        if (inside / "pvopt.json").is_file():
            raise ValueError(
                f"source={str(folder)!r} is a checkpoint of pvopt, not a model: name it by "
                "--checkpoint, or load it by pvopt.formats.load"
            )
    if folder.is_file():
        raise ValueError(
            f"source={str(folder)!r} is a file: name the folder that it lies in, or a GGUF file"
        )
    for reader in FORMATS.readers:
        if isinstance(reader, LayerFormat) and reader.match(folder):
            raise ValueError(
                f"source={str(folder)!r} is quantized already ({reader.name}): name it by "
                "--checkpoint, or load it by pvopt.formats.load"
            )
    adapter = (folder / "adapter_config.json").is_file()
    if adapter and not (folder / "config.json").is_file():
        raise ValueError(
            f"source={str(folder)!r} is an adapter, not a model: merge it into its model (of peft: "
            "merge_and_unload) and save that by save_pretrained"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"source={str(folder)!r} exists but has no config.json: it must be a folder in the "
            "Hugging Face format, as written by model.save_pretrained()"
        )


def check_config(source: str, config: Any) -> None:
    """Refuse models that are no causal language models, by their configuration.

    Args:
        source: where it comes from, for messages.
        config: a transformers configuration.

    Raises:
        ValueError: if the model is quantized already, has an encoder, takes other inputs than text,
            or was trained for something else than predicting the next token.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as known

    method = quantization_method(config)
    if method in {"pvopt", *(reader.name for reader in FORMATS.readers)}:
        raise ValueError(
            f"source={source!r} is quantized already ({method}): download its folder and name that "
            "by --checkpoint"
        )
    if method is not None and method not in DEQUANTIZED:
        raise ValueError(
            f"source={source!r} is quantized already ({method}), in a format that is not read: "
            "name its original"
        )
    names = known.get(config.model_type, ())
    classes = {names} if isinstance(names, str) else {*names}
    named = getattr(config, "architectures", None) or []
    own = [name for name in ([named] if isinstance(named, str) else named) if isinstance(name, str)]
    kind = f"source={source!r} is a {own[0] if own else config.model_type}"
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{kind}, which has an encoder and a decoder: pvopt works on models that are a decoder "
            "alone (causal language models)"
        )
    text = config.get_text_config()
    if not classes and text is not config:
        if text.model_type not in known:
            raise ValueError(
                f"{kind}, which takes more than text, and its language model is none that "
                "transformers loads by itself"
            )
        raise ValueError(
            f"{kind}, which takes more than text: save its language model by itself, "
            "AutoModelForCausalLM.from_config(model.config.text_config) with the weights of "
            "model.model.language_model (as its .model) and model.lm_head, and name that folder"
        )
    other = [name for name in own if name not in classes and not name.endswith("Model")]
    if not classes or len(other) == len(own) > 0:
        raise ValueError(
            f"{kind}, no causal language model: pvopt works on models that predict the next token, "
            "those of transformers.AutoModelForCausalLM"
        )


def quantization_method(config: Any) -> str | None:
    """Return the name of how a model is quantized, by its configuration; None if it is not.

    Args:
        config: a transformers configuration.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    settings = found if isinstance(found, dict) else getattr(found, "to_dict", dict)()
    method = settings.get("quant_method") or "by a method that it does not name"
    return str(getattr(method, "value", method))


@torch.no_grad()
def check_causal(source: str, model: nn.Module) -> None:
    """Refuse models that look at later tokens, such as encoders with a head of a decoder.

    Raises:
        ValueError: if the first token's logits depend on the second token.
    """
    ids = torch.tensor([[0, 1], [0, 2]], device=next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits[:, 0].float()
    # Rows of a batch agree up to the order of sums.
    tolerance = max(8 * torch.finfo(next(model.parameters()).dtype).eps, 1e-4)
    if float((logits[0] - logits[1]).abs().max()) > tolerance * float(logits.abs().max()):
        raise ValueError(
            f"source={source!r}: what {type(model).__name__} predicts from a token depends on "
            "later ones, so it is no causal language model (is_decoder=True may be missing)"
        )


def check_finite(source: str, model: nn.Module) -> None:
    """Refuse models with NaN or infinity among their weights.

    Raises:
        CheckpointError: naming the first such weight.
    """
    for name, parameter in model.named_parameters():
        if not all(bool(end.isfinite()) for end in parameter.detach().aminmax()):
            raise CheckpointError(f"source={source!r}: {name} has NaN or infinite entries")


def max_positions(model: nn.Module) -> int | None:
    """Return the most tokens that a model was made for, or None if nothing limits them.

    Example:
        >>> from pvopt.llm import load_model, max_positions
        >>> max_positions(load_model("tiny-llama").model)
        512
    """
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    known = isinstance(positions, int) and not isinstance(positions, bool) and positions > 0
    return positions if known else None


def check_length(model: nn.Module, name: str, length: int) -> None:
    """Refuse sequences of more tokens than a model has positions.

    Args:
        model: a causal language model.
        name: of the argument, for messages.
        length: tokens of a sequence.

    Raises:
        ValueError: if there are fewer positions.

    Example:
        >>> from pvopt.llm import check_length, load_model
        >>> check_length(load_model("tiny-llama").model, "length", 512)
    """
    positions = max_positions(model)
    if positions is not None and length > positions:
        raise ValueError(
            f"{name} must be at most {positions}, the positions of {type(model).__name__}, "
            f"got {length}"
        )
