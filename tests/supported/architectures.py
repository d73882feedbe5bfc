"""Tiny random models of many architectures, by what transformers calls them."""

from __future__ import annotations

import torch

_SPECIAL = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
_COMMON = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    **_SPECIAL,
}
_GPT = {"vocab_size": 259, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
_PLAIN = {name: _COMMON[name] for name in _COMMON if name != "num_key_value_heads"}
_STATE = {"vocab_size": 259, "hidden_size": 64, "num_hidden_layers": 2, **_SPECIAL}
_HEADS = {"head_dim": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GEMMA = {"head_dim": 24, "sliding_window": 32}
_PER_LAYER = {
    **_HEADS,
    "vocab_size_per_layer_input": 259,
    "hidden_size_per_layer_input": 16,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"],
}

#: Settings by model type.
ARCHITECTURES = {
    "bloom": {**_STATE, "n_layer": 2, "n_head": 4},
    "cohere": _COMMON,
    "deepseek_v3": {
        **_COMMON, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16, "v_head_dim": 16,
    },
    "falcon": {**_STATE, "num_attention_heads": 4, "max_position_embeddings": 128},
    "falcon_h1": {
        **_COMMON, **_HEADS, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16,
        "mamba_d_state": 16,
    },
    "gemma2": {**_COMMON, **_GEMMA},
    "gemma3_text": {**_COMMON, **_GEMMA},
    "gemma3n_text": {
        **_COMMON, **_PER_LAYER, "intermediate_size": [128, 128], "laurel_rank": 16,
        "activation_sparsity_pattern": [0.0, 0.0], "num_kv_shared_layers": 0,
    },
    "gemma4_text": {**_COMMON, **_PER_LAYER},
    "gpt2": {**_GPT, **_SPECIAL},
    "gpt_bigcode": {**_GPT, **_SPECIAL},
    "gpt_neo": {
        "vocab_size": 259, "hidden_size": 64, "num_layers": 2, "num_heads": 4,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 128, **_SPECIAL,
    },
    "gpt_neox": _PLAIN,
    "gpt_oss": {
        **_COMMON, **_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32,
    },
    "gptj": {**_GPT, "rotary_dim": 8, **_SPECIAL},
    "granite": {**_COMMON, "logits_scaling": 4.0},
    "jamba": {
        **_COMMON, "num_experts": 2, "mamba_d_state": 16, "mamba_dt_rank": 16,
        "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1,
    },
    "lfm2": {**_COMMON, "layer_types": ["conv", "full_attention"]},
    "llama": _COMMON,
    "mamba": {**_STATE, "state_size": 16, "time_step_rank": 16},
    "mamba2": {**_STATE, "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1},
    "mistral": {**_COMMON, **_HEADS},
    "mixtral": {**_COMMON, "num_local_experts": 4},
    "modernbert-decoder": {**_PLAIN, "cls_token_id": 256, "sep_token_id": 257},
    "mpt": {"vocab_size": 259, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "nanochat": {**_COMMON, **_HEADS},
    "olmo2": _COMMON,
    "opt": {
        **_STATE, "ffn_dim": 128, "num_attention_heads": 4, "max_position_embeddings": 128,
        "word_embed_proj_dim": 32, "do_layer_norm_before": False,
    },
    "phi": _COMMON,
    "phi3": _COMMON,
    "qwen2": _COMMON,
    "qwen2_moe": {**_COMMON, **_EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3": {**_COMMON, **_HEADS},
    "qwen3_moe": {**_COMMON, **_HEADS, **_EXPERTS},
    "qwen3_next": {
        **_COMMON, **_HEADS, **_EXPERTS, "shared_expert_intermediate_size": 32,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"],
    },
    "recurrent_gemma": {**_COMMON, **_HEADS, "num_hidden_layers": 3},
    "rwkv": {**_STATE, "attention_hidden_size": 64, "context_length": 128},
    "smollm3": _COMMON,
    "starcoder2": _COMMON,
    "xlstm": {**_STATE, "num_heads": 4, "qk_dim_factor": 1.0},
}  # fmt: skip

#: Flags that a model needs, for quantize.
FLAGS = {"gemma3n_text": ["--exclude", "*.altup.*"]}


def save_model(kind: str, folder: str) -> str:
    """Write a random model and a tokenizer of bytes; return the name of the model's class."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from pvopt.llm.tiny_llama import tiny_llama

    config = AutoConfig.for_model(kind, **ARCHITECTURES[kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Activations of unit size, so that damage to the weights shows in the logits.
                if parameter.ndim > 1 and "conv" not in name and "A_log" not in name:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    tiny_llama(0)[1].save_pretrained(folder)
    return type(model).__name__
