"""A tiny random language model that needs no download: for tests and continuous integration."""

from __future__ import annotations

from typing import Any

import torch


def tiny_llama(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Make a random Llama with two layers of width 64, and a tokenizer that reads bytes.

    Args:
        seed: draws the weights; the global random generator is left as it was.
        dtype: of the weights, which are the same numbers up to rounding for every dtype.

    Returns:
        The model, a ``LlamaForCausalLM`` with tied embeddings, and its tokenizer.

    Example:
        >>> from pvopt.llm.tiny_llama import tiny_llama
        >>> model, tokenizer = tiny_llama(seed=0)
        >>> tokenizer.encode("é"), len(tokenizer)
        ([195, 169], 259)
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = _byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # the constructor draws from the global generator
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                # Activations of unit size, so that damage to the weights shows in the logits.
                weight = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(weight * parameter.shape[1] ** -0.5)
    return model, tokenizer


def _byte_tokenizer() -> Any:
    """Token id = byte value of the UTF-8 text; three special tokens follow."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Byte-level tokenizers write each byte as one printable character: printable Latin-1 bytes as
    # themselves, the other ones as the characters from U+0100 on, in order.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    shifted = iter(range(256, 512))
    alphabet = [chr(byte if byte in printable else next(shifted)) for byte in range(256)]
    vocabulary = {character: byte for byte, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
