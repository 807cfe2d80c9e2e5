"""The smallest DeepSeek V4 model that has every part, as a GGUF writer to be bent by tests.

Three layers: window only with hash routing, ratio 4 with indexer, ratio 128. Numbers are chosen for
small files (about 100 KB), not for sensible text: tests that need text use the demo model.

    python tests/helpers/tiny_gguf.py OUT.gguf
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from gguf_writer import GgufWriter


@dataclass
class Shape:
    """Sizes of the model; the defaults are the smallest that the loader accepts."""

    hidden: int = 32
    vocab: int = 264
    heads: int = 2
    head_dim: int = 80
    rope_dim: int = 16
    q_lora: int = 32
    o_groups: int = 2
    o_lora: int = 16
    window: int = 8
    index_heads: int = 2
    index_head_dim: int = 32
    top_k: int = 4
    streams: int = 2
    experts: int = 3
    used: int = 2
    ff: int = 32
    hash_layers: int = 1
    ratios: tuple[int, ...] = (0, 4, 128)
    clamp: float = 10.0


def add_keys(w: GgufWriter, s: Shape) -> None:
    """Every key that the loader knows, except those about draft layers."""
    w.add("general.architecture", "deepseek4")
    w.add("general.name", "tiny")
    ints = {
        "block_count": len(s.ratios),
        "context_length": 4096,
        "embedding_length": s.hidden,
        "vocab_size": s.vocab,
        "attention.head_count": s.heads,
        "attention.head_count_kv": 1,
        "attention.key_length": s.head_dim,
        "attention.value_length": s.head_dim,
        "attention.q_lora_rank": s.q_lora,
        "attention.output_lora_rank": s.o_lora,
        "attention.output_group_count": s.o_groups,
        "attention.sliding_window": s.window,
        "attention.indexer.head_count": s.index_heads,
        "attention.indexer.key_length": s.index_head_dim,
        "attention.indexer.top_k": s.top_k,
        "rope.dimension_count": s.rope_dim,
        "rope.scaling.original_context_length": 65536,
        "expert_count": s.experts,
        "expert_used_count": s.used,
        "expert_shared_count": 1,
        "expert_gating_func": 4,
        "expert_feed_forward_length": s.ff,
        "hash_layer_count": s.hash_layers,
        "hyper_connection.count": s.streams,
        "hyper_connection.sinkhorn_iterations": 20,
    }
    floats = {
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.compress_rope_freq_base": 160000.0,
        "rope.freq_base": 10000.0,
        "rope.scaling.factor": 16.0,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "expert_weights_scale": 1.5,
        "hyper_connection.epsilon": 1e-6,
    }
    for key, i in ints.items():
        w.add("deepseek4." + key, i, "u32")
    for key, f in floats.items():
        w.add("deepseek4." + key, f, "f32")
    w.add("deepseek4.rope.scaling.type", "yarn")
    w.add("deepseek4.expert_weights_norm", True)
    w.add("deepseek4.attention.compress_ratios", [*s.ratios, 0], "array:i32")
    w.add("deepseek4.swiglu_clamp_exp", [s.clamp] * len(s.ratios), "array:f32")


def layer_shapes(s: Shape, i: int) -> dict[str, tuple[int, ...]]:
    """Row-major shapes of one layer's tensors, without tid2eid."""
    mixes = s.streams * (2 + s.streams)
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (s.hidden,),
        "ffn_norm.weight": (s.hidden,),
        "attn_q_a.weight": (s.q_lora, s.hidden),
        "attn_q_a_norm.weight": (s.q_lora,),
        "attn_q_b.weight": (s.heads * s.head_dim, s.q_lora),
        "attn_kv.weight": (s.head_dim, s.hidden),
        "attn_kv_a_norm.weight": (s.head_dim,),
        "attn_sinks.weight": (s.heads,),
        "attn_output_a.weight": (s.o_groups * s.o_lora, s.heads * s.head_dim // s.o_groups),
        "attn_output_b.weight": (s.hidden, s.o_groups * s.o_lora),
        "ffn_gate_inp.weight": (s.experts, s.hidden),
        "ffn_gate_exps.weight": (s.experts, s.ff, s.hidden),
        "ffn_up_exps.weight": (s.experts, s.ff, s.hidden),
        "ffn_down_exps.weight": (s.experts, s.hidden, s.ff),
        "ffn_gate_shexp.weight": (s.ff, s.hidden),
        "ffn_up_shexp.weight": (s.ff, s.hidden),
        "ffn_down_shexp.weight": (s.hidden, s.ff),
    }
    for part in ("attn", "ffn"):
        shapes[f"hc_{part}_fn.weight"] = (mixes, s.streams * s.hidden)
        shapes[f"hc_{part}_base.weight"] = (mixes,)
        shapes[f"hc_{part}_scale.weight"] = (3,)
    if i >= s.hash_layers:
        shapes["exp_probs_b.bias"] = (s.experts,)
    ratio = s.ratios[i]
    compressors = {"attn_compressor_": s.head_dim} if ratio else {}
    if ratio == 4:
        compressors["indexer_compressor_"] = s.index_head_dim
        shapes["indexer.attn_q_b.weight"] = (s.index_heads * s.index_head_dim, s.q_lora)
        shapes["indexer.proj.weight"] = (s.index_heads, s.hidden)
    for prefix, row in compressors.items():
        width = 2 * row if ratio == 4 else row
        shapes[prefix + "kv.weight"] = (width, s.hidden)
        shapes[prefix + "gate.weight"] = (width, s.hidden)
        shapes[prefix + "ape.weight"] = (ratio, width)
        shapes[prefix + "norm.weight"] = (row,)
    return shapes


def byte_alphabet() -> list[str]:
    """Characters that stand for bytes 0..255 in a byte-level vocabulary [GPT-2]."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def add_tokenizer(w: GgufWriter, vocab: int) -> None:
    """A byte-level vocabulary: three specials, the bytes, one merge, the rest unused."""
    tokens = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
    tokens += [*byte_alphabet(), '"#']
    n_known = len(tokens)
    tokens += [f"[PAD{i}]" for i in range(n_known, vocab)]
    kinds = [3] * 3 + [1] * (n_known - 3) + [5] * (vocab - n_known)
    w.add("tokenizer.ggml.model", "gpt2")
    w.add("tokenizer.ggml.pre", "joyai-llm")
    w.add("tokenizer.ggml.tokens", tokens, "array:string")
    w.add("tokenizer.ggml.token_type", kinds, "array:i32")
    w.add("tokenizer.ggml.merges", ['" #'], "array:string")
    w.add("tokenizer.ggml.bos_token_id", 0, "u32")
    w.add("tokenizer.ggml.eos_token_id", 1, "u32")


def tiny_model(shape: Shape | None = None, *, seed: int = 1, dtype: str = "F32") -> GgufWriter:
    """A complete file; change keys and tensors of the result before writing it."""
    s = shape or Shape()
    rng = np.random.default_rng(seed)
    w = GgufWriter()
    add_keys(w, s)
    add_tokenizer(w, s.vocab)

    def add(name: str, dims: tuple[int, ...]) -> None:
        if name.endswith("norm.weight"):
            w.add_tensor(name, np.ones(dims, np.float32))
        elif len(dims) == 1 or name.endswith("ape.weight"):
            w.add_tensor(name, rng.standard_normal(dims, np.float32) * np.float32(0.1))
        else:
            scale = np.float32(dims[-1] ** -0.5)
            w.add_tensor(name, rng.standard_normal(dims, np.float32) * scale, dtype)

    add("token_embd.weight", (s.vocab, s.hidden))
    add("output.weight", (s.vocab, s.hidden))
    add("output_norm.weight", (s.hidden,))
    add("output_hc_fn.weight", (s.streams, s.streams * s.hidden))
    add("output_hc_base.weight", (s.streams,))
    add("output_hc_scale.weight", (1,))
    for i in range(len(s.ratios)):
        for name, dims in layer_shapes(s, i).items():
            add(f"blk.{i}.{name}", dims)
        if i < s.hash_layers:
            table = np.stack([rng.permutation(s.experts)[: s.used] for _ in range(s.vocab)])
            w.add_tensor(f"blk.{i}.ffn_gate_tid2eid.weight", table, "I32")
    return w


if __name__ == "__main__":
    print(tiny_model().write(sys.argv[1]))
