"""Checkpoint in DeepSeek's layout -> GGUF for grebe, ds4 and llama.cpp.

    python export_gguf.py --hf DIR --gguf grebe-demo.gguf --mtp grebe-demo-mtp.gguf [--experts mxfp4]

Experts become MXFP4 (the FP4 numbers of the checkpoint, exactly), dense matrices and embedding Q8_0, compressor,
indexer, router and stream matrices F16, vectors F32: the types of the published files, experts apart. The draft
block goes to a file of its own, as those do it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import checkpoint
import numpy as np
from gguf_file import Tensor, key, write

A = "deepseek4"
# GGUF name, official name, type; below a layer.
LAYER = (
    ("hc_attn_fn.weight", "hc_attn_fn", "f16"),
    ("hc_attn_base.weight", "hc_attn_base", "f32"),
    ("hc_attn_scale.weight", "hc_attn_scale", "f32"),
    ("hc_ffn_fn.weight", "hc_ffn_fn", "f16"),
    ("hc_ffn_base.weight", "hc_ffn_base", "f32"),
    ("hc_ffn_scale.weight", "hc_ffn_scale", "f32"),
    ("attn_norm.weight", "attn_norm.weight", "f32"),
    ("attn_q_a.weight", "attn.wq_a.weight", "q8_0"),
    ("attn_q_a_norm.weight", "attn.q_norm.weight", "f32"),
    ("attn_q_b.weight", "attn.wq_b.weight", "q8_0"),
    ("attn_kv.weight", "attn.wkv.weight", "q8_0"),
    ("attn_kv_a_norm.weight", "attn.kv_norm.weight", "f32"),
    ("attn_sinks.weight", "attn.attn_sink", "f32"),
    ("attn_output_a.weight", "attn.wo_a.weight", "q8_0"),
    ("attn_output_b.weight", "attn.wo_b.weight", "q8_0"),
    ("attn_compressor_ape.weight", "attn.compressor.ape", "f16"),
    ("attn_compressor_kv.weight", "attn.compressor.wkv.weight", "f16"),
    ("attn_compressor_gate.weight", "attn.compressor.wgate.weight", "f16"),
    ("attn_compressor_norm.weight", "attn.compressor.norm.weight", "f32"),
    ("indexer_compressor_ape.weight", "attn.indexer.compressor.ape", "f16"),
    ("indexer_compressor_kv.weight", "attn.indexer.compressor.wkv.weight", "f16"),
    ("indexer_compressor_gate.weight", "attn.indexer.compressor.wgate.weight", "f16"),
    ("indexer_compressor_norm.weight", "attn.indexer.compressor.norm.weight", "f32"),
    ("indexer.attn_q_b.weight", "attn.indexer.wq_b.weight", "f16"),
    ("indexer.proj.weight", "attn.indexer.weights_proj.weight", "f16"),
    ("ffn_norm.weight", "ffn_norm.weight", "f32"),
    ("ffn_gate_inp.weight", "ffn.gate.weight", "f16"),
    ("exp_probs_b.bias", "ffn.gate.bias", "f32"),
    ("ffn_gate_tid2eid.weight", "ffn.gate.tid2eid", "i32"),
    ("ffn_gate_shexp.weight", "ffn.shared_experts.w1.weight", "q8_0"),
    ("ffn_up_shexp.weight", "ffn.shared_experts.w3.weight", "q8_0"),
    ("ffn_down_shexp.weight", "ffn.shared_experts.w2.weight", "q8_0"),
)
MAIN = (
    ("token_embd.weight", "embed.weight", "q8_0"),
    ("output.weight", "head.weight", "q8_0"),
    ("output_norm.weight", "norm.weight", "f32"),
    ("output_hc_fn.weight", "hc_head_fn", "f16"),
    ("output_hc_base.weight", "hc_head_base", "f32"),
    ("output_hc_scale.weight", "hc_head_scale", "f32"),
)
DRAFT = (
    ("mtp.0.hc_head_fn.weight", "mtp.0.hc_head_fn", "f32"),
    ("mtp.0.hc_head_base.weight", "mtp.0.hc_head_base", "f32"),
    ("mtp.0.hc_head_scale.weight", "mtp.0.hc_head_scale", "f32"),
    ("mtp.0.norm.weight", "mtp.0.norm.weight", "f32"),
    ("mtp.0.e_proj.weight", "mtp.0.e_proj.weight", "q8_0"),
    ("mtp.0.h_proj.weight", "mtp.0.h_proj.weight", "q8_0"),
    ("mtp.0.enorm.weight", "mtp.0.enorm.weight", "f32"),
    ("mtp.0.hnorm.weight", "mtp.0.hnorm.weight", "f32"),
)


def model_keys(c: dict, architecture: str, name: str) -> list[bytes]:
    n, rope = c["num_hidden_layers"], c["rope_scaling"]
    clamps = [c["swiglu_limit"]] * n
    keys = [
        key("general.architecture", "string", architecture),
        key("general.name", "string", name),
        key("general.license", "string", "apache-2.0"),
        key("general.quantization_version", "u32", 2),
        key("general.alignment", "u32", 32),
    ]
    counts = {
        "vocab_size": c["vocab_size"],
        "context_length": c["max_position_embeddings"],
        "embedding_length": c["hidden_size"],
        "embedding_length_out": c["hidden_size"] * c["hc_mult"],
        "block_count": n,
        "feed_forward_length": c["moe_intermediate_size"],
        "expert_feed_forward_length": c["moe_intermediate_size"],
        "expert_count": c["n_routed_experts"],
        "expert_used_count": c["num_experts_per_tok"],
        "expert_shared_count": 1,
        "expert_group_count": 0,
        "expert_group_used_count": 0,
        "expert_gating_func": 4,
        "hash_layer_count": c["num_hash_layers"],
        "nextn_predict_layers": 0,
        "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": 1,
        "attention.key_length": c["head_dim"],
        "attention.value_length": c["head_dim"],
        "attention.q_lora_rank": c["q_lora_rank"],
        "attention.output_lora_rank": c["o_lora_rank"],
        "attention.output_group_count": c["o_groups"],
        "attention.sliding_window": c["sliding_window"],
        "attention.indexer.head_count": c["index_n_heads"],
        "attention.indexer.key_length": c["index_head_dim"],
        "attention.indexer.top_k": c["index_topk"],
        "rope.dimension_count": c["qk_rope_head_dim"],
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "hyper_connection.count": c["hc_mult"],
        "hyper_connection.sinkhorn_iterations": c["hc_sinkhorn_iters"],
    }
    numbers = {
        "expert_weights_scale": c["routed_scaling_factor"],
        "attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
        "attention.compress_rope_freq_base": c["compress_rope_theta"],
        "rope.freq_base": c["rope_theta"],
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.yarn_beta_fast": rope["beta_fast"],
        "rope.scaling.yarn_beta_slow": rope["beta_slow"],
        "hyper_connection.epsilon": c["hc_eps"],
    }
    keys += [key(f"{A}.{k}", "u32", v) for k, v in counts.items()]
    keys += [key(f"{A}.{k}", "f32", v) for k, v in numbers.items()]
    return [
        *keys,
        key(f"{A}.expert_weights_norm", "bool", True),
        key(f"{A}.swiglu_clamp_exp", "f32", clamps),
        key(f"{A}.swiglu_clamp_shexp", "f32", clamps),
        key(f"{A}.attention.compress_ratios", "u32", c["compress_ratios"][:n]),
        key(f"{A}.rope.scaling.type", "string", "yarn"),
    ]


def tokenizer_keys(file: Path, vocab_size: int) -> list[bytes]:
    t = json.loads(file.read_text(encoding="utf-8"))
    tokens, types = [""] * vocab_size, [1] * vocab_size
    for text, i in t["model"]["vocab"].items():
        tokens[i] = text
    for added in t["added_tokens"]:
        control = added["special"] or added["content"].startswith(("<", "｜"))
        tokens[added["id"]], types[added["id"]] = added["content"], 3 if control else 4
    if not all(tokens):
        raise ValueError(f"{file}: the token table has holes")
    merges = [m if isinstance(m, str) else " ".join(m) for m in t["model"]["merges"]]
    return [
        key("tokenizer.ggml.model", "string", "gpt2"),
        key("tokenizer.ggml.pre", "string", "joyai-llm"),
        key("tokenizer.ggml.tokens", "string", tokens),
        key("tokenizer.ggml.token_type", "i32", types),
        key("tokenizer.ggml.merges", "string", merges),
        key("tokenizer.ggml.bos_token_id", "u32", 0),
        key("tokenizer.ggml.eos_token_id", "u32", 1),
        key("tokenizer.ggml.padding_token_id", "u32", 2),
        key("tokenizer.ggml.add_bos_token", "bool", False),
        key("tokenizer.ggml.add_eos_token", "bool", False),
    ]


def layer_tensors(
    weights: dict[str, np.ndarray], source: str, target: str, n_experts: int, experts: str
) -> list[Tensor]:
    out = [
        Tensor(f"{target}.{gguf}", weights[f"{source}.{name}"], kind)
        for gguf, name, kind in LAYER
        if f"{source}.{name}" in weights
    ]
    for gguf, name in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        stack = [weights[f"{source}.ffn.experts.{e}.{name}.weight"] for e in range(n_experts)]
        out.append(Tensor(f"{target}.ffn_{gguf}_exps.weight", np.stack(stack), experts))
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--hf", type=Path, required=True, help="folder that train.py wrote")
    p.add_argument("--gguf", type=Path, required=True)
    p.add_argument("--mtp", type=Path, help="also write the draft block")
    p.add_argument("--experts", default="mxfp4", choices=["mxfp4", "q8_0", "f16", "f32"])
    p.add_argument("--f32", action="store_true", help="every matrix F32, for comparisons")
    p.add_argument("--name", default="grebe demo")
    a = p.parse_args()
    weights, c = checkpoint.read(a.hf)
    n, n_experts = c["num_hidden_layers"], c["n_routed_experts"]

    def finish(path: Path, keys: list[bytes], tensors: list[Tensor]) -> None:
        if a.f32:
            tensors = [t._replace(kind="i32" if t.kind == "i32" else "f32") for t in tensors]
        write(path, keys, tensors)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {len(tensors)} tensors")

    keys = model_keys(c, A, a.name) + tokenizer_keys(a.hf / "tokenizer.json", c["vocab_size"])
    tensors = [Tensor(gguf, weights[name], kind) for gguf, name, kind in MAIN]
    for i in range(n):
        tensors += layer_tensors(weights, f"layers.{i}", f"blk.{i}", n_experts, a.experts)
    finish(a.gguf, keys, tensors)
    if a.mtp:
        keys = model_keys(c, f"{A}_mtp_support", f"{a.name}, draft block")
        keys.append(key(f"{A}.mtp_layer_count", "u32", 1))
        tensors = [Tensor(gguf, weights[name], kind) for gguf, name, kind in DRAFT]
        tensors += layer_tensors(weights, "mtp.0", "mtp.0", n_experts, a.experts)
        finish(a.mtp, keys, tensors)


if __name__ == "__main__":
    main()
