"""Keys of the GGUF file: numbers from config.json, the vocabulary from tokenizer.json."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from ..errors import FormatError, StorageError
from .gguf_file import key

__all__ = ["model_keys", "tokenizer_keys"]

ARCHITECTURE = "deepseek4"
FILE_TYPES = {
    "q2": 19, "q2-q4": 19, "q2-fast": 19, "q4": 14, "q8": 7, "mxfp4": 38, "bf16": 32, "f32": 0,
}  # fmt: skip
SQRT_SOFTPLUS = 4

# GGUF key -> config.json key
COUNTS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "moe_intermediate_size",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "attention.head_count": "num_attention_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.output_lora_rank": "o_lora_rank",
    "attention.output_group_count": "o_groups",
    "attention.sliding_window": "sliding_window",
    "attention.indexer.head_count": "index_n_heads",
    "attention.indexer.key_length": "index_head_dim",
    "attention.indexer.top_k": "index_topk",
    "rope.dimension_count": "qk_rope_head_dim",
    "hyper_connection.count": "hc_mult",
    "hyper_connection.sinkhorn_iterations": "hc_sinkhorn_iters",
}
NUMBERS = {
    "expert_weights_scale": "routed_scaling_factor",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.compress_rope_freq_base": "compress_rope_theta",
    "rope.freq_base": "rope_theta",
    "hyper_connection.epsilon": "hc_eps",
}


def model_keys(
    config: dict[str, Any], *, name: str, recipe: str, architecture: str = ARCHITECTURE
) -> list[bytes]:
    """``general.*`` and ``deepseek4.*``."""
    n = config["num_hidden_layers"]
    keys = [
        key("general.architecture", "string", architecture),
        key("general.name", "string", name.encode(errors="replace").decode()),
        key("general.quantization_version", "u32", 2),
        key("general.alignment", "u32", 32),
    ]
    if recipe in FILE_TYPES:
        keys.append(key("general.file_type", "u32", FILE_TYPES[recipe]))

    def add(name: str, kind: str, value: Any) -> None:
        keys.append(key(f"{ARCHITECTURE}.{name}", kind, value))

    try:
        for gguf, own in COUNTS.items():
            add(gguf, "u32", int(config[own]))
        for gguf, own in NUMBERS.items():
            add(gguf, "f32", float(config[own]))
        yarn = config.get("rope_scaling") or {}
        add("rope.scaling.type", "string", "yarn" if yarn else "none")
        if yarn:
            context = int(yarn["original_max_position_embeddings"])
            add("rope.scaling.factor", "f32", float(yarn["factor"]))
            add("rope.scaling.original_context_length", "u32", context)
            add("rope.scaling.yarn_beta_fast", "f32", float(yarn["beta_fast"]))
            add("rope.scaling.yarn_beta_slow", "f32", float(yarn["beta_slow"]))
        add("attention.head_count_kv", "u32", 1)
        add("expert_shared_count", "u32", int(config.get("n_shared_experts", 1)))
        add("expert_group_count", "u32", 0)
        add("expert_group_used_count", "u32", 0)
        add("expert_gating_func", "u32", SQRT_SOFTPLUS)
        add("expert_weights_norm", "bool", bool(config.get("norm_topk_prob", True)))
        add("hash_layer_count", "u32", int(config.get("num_hash_layers", 0)))
        add("nextn_predict_layers", "u32", int(architecture != ARCHITECTURE))
        add("swiglu_clamp_exp", "f32", [float(config.get("swiglu_limit", 0.0))] * n)
        add("attention.compress_ratios", "u32", [int(r) for r in config["compress_ratios"][:n]])
    except (KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        raise FormatError(f"config.json: a key is missing or no such number: {error!r}") from None
    return keys


def tokenizer_keys(folder: Path, config: dict[str, Any]) -> list[bytes]:
    """``tokenizer.*`` from tokenizer.json and, for the chat template, tokenizer_config.json."""
    file = folder / "tokenizer.json"
    size = int(config["vocab_size"])
    try:
        stored = json.loads(file.read_bytes())
        tokens = [f"[PAD{i}]" for i in range(size)]
        types = [5] * size  # unused
        for text, i in stored["model"]["vocab"].items():
            tokens[i], types[i] = text, 1
        for added in stored["added_tokens"]:
            control = added["special"] or added["content"].startswith(("<", "｜"))
            tokens[added["id"]], types[added["id"]] = added["content"], 3 if control else 4
        merges = [m if isinstance(m, str) else " ".join(m) for m in stored["model"]["merges"]]
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}", str(file), error.errno) from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FormatError(
            f"{file}: not a tokenizer of {size} tokens: {error!r}", str(file)
        ) from None
    keys = [
        key("tokenizer.ggml.model", "string", "gpt2"),
        key("tokenizer.ggml.pre", "string", "joyai-llm"),
        key("tokenizer.ggml.tokens", "string", tokens),
        key("tokenizer.ggml.token_type", "i32", types),
        key("tokenizer.ggml.merges", "string", merges),
        key("tokenizer.ggml.bos_token_id", "u32", int(config.get("bos_token_id", 0))),
        key("tokenizer.ggml.eos_token_id", "u32", int(config.get("eos_token_id", 1))),
        key("tokenizer.ggml.padding_token_id", "u32", int(config.get("pad_token_id") or 1)),
        key("tokenizer.ggml.add_bos_token", "bool", False),
        key("tokenizer.ggml.add_eos_token", "bool", False),
    ]
    try:
        template = json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")
    except (OSError, ValueError, AttributeError):
        template = None
    if isinstance(template, str):
        keys.append(key("tokenizer.chat_template", "string", template))
    return keys
