"""DeepSeek V4 checkpoint in DeepSeek's layout (config.json and safetensors) -> GGUF.

    python tests/helpers/hf_to_gguf.py FOLDER OUT.gguf [--f32] [--mtp]

Nothing is rounded: BF16 and F32 stay, FP8 matrices become the I8 pairs of docs/gguf.md, FP4 experts
become MXFP4 (the nibbles are paired differently, the values are the same). ``--f32`` widens every
weight instead, for readers without FP8. Draft layers are left out unless ``--mtp``. Written for the
small oracle checkpoints: everything is held in memory.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from gguf_writer import GgufWriter

TOP = {
    "embed.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
    "hc_head_fn": "output_hc_fn.weight",
    "hc_head_base": "output_hc_base.weight",
    "hc_head_scale": "output_hc_scale.weight",
}
LAYER = {
    "attn_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "attn.attn_sink": "attn_sinks.weight",
    "attn.wq_a.weight": "attn_q_a.weight",
    "attn.wq_b.weight": "attn_q_b.weight",
    "attn.wkv.weight": "attn_kv.weight",
    "attn.wo_a.weight": "attn_output_a.weight",
    "attn.wo_b.weight": "attn_output_b.weight",
    "attn.q_norm.weight": "attn_q_a_norm.weight",
    "attn.kv_norm.weight": "attn_kv_a_norm.weight",
    "attn.compressor.ape": "attn_compressor_ape.weight",
    "attn.compressor.wkv.weight": "attn_compressor_kv.weight",
    "attn.compressor.wgate.weight": "attn_compressor_gate.weight",
    "attn.compressor.norm.weight": "attn_compressor_norm.weight",
    "attn.indexer.wq_b.weight": "indexer.attn_q_b.weight",
    "attn.indexer.weights_proj.weight": "indexer.proj.weight",
    "attn.indexer.compressor.ape": "indexer_compressor_ape.weight",
    "attn.indexer.compressor.wkv.weight": "indexer_compressor_kv.weight",
    "attn.indexer.compressor.wgate.weight": "indexer_compressor_gate.weight",
    "attn.indexer.compressor.norm.weight": "indexer_compressor_norm.weight",
    "ffn.gate.weight": "ffn_gate_inp.weight",
    "ffn.gate.bias": "exp_probs_b.bias",
    "ffn.gate.tid2eid": "ffn_gate_tid2eid.weight",
    "ffn.shared_experts.w1.weight": "ffn_gate_shexp.weight",
    "ffn.shared_experts.w2.weight": "ffn_down_shexp.weight",
    "ffn.shared_experts.w3.weight": "ffn_up_shexp.weight",
    **{
        f"hc_{p}_{s}": f"hc_{p}_{s}.weight"
        for p in ("attn", "ffn")
        for s in ("fn", "base", "scale")
    },
    # draft layers only; they keep their names
    **{f"{n}.weight": f"{n}.weight" for n in ("e_proj", "h_proj", "enorm", "hnorm", "norm")},
    **{f"hc_head_{s}": f"hc_head_{s}.weight" for s in ("fn", "base", "scale")},
}
EXPERTS = {"w1": "ffn_gate_exps.weight", "w2": "ffn_down_exps.weight", "w3": "ffn_up_exps.weight"}

# GGUF key (under deepseek4.) -> config.json key
INTS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.output_group_count": "o_groups",
    "attention.output_lora_rank": "o_lora_rank",
    "attention.sliding_window": "sliding_window",
    "attention.indexer.head_count": "index_n_heads",
    "attention.indexer.key_length": "index_head_dim",
    "attention.indexer.top_k": "index_topk",
    "rope.dimension_count": "qk_rope_head_dim",
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_shared_count": "n_shared_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "hash_layer_count": "num_hash_layers",
    "hyper_connection.count": "hc_mult",
    "hyper_connection.sinkhorn_iterations": "hc_sinkhorn_iters",
}
FLOATS = {
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.compress_rope_freq_base": "compress_rope_theta",
    "rope.freq_base": "rope_theta",
    "expert_weights_scale": "routed_scaling_factor",
    "hyper_connection.epsilon": "hc_eps",
}

_E4M3 = np.array(
    [
        (m / 8) * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7)
        for e in range(16)
        for m in range(8)
    ],
    np.float32,
)
_E4M3[127] = np.nan
E4M3 = np.concatenate([_E4M3, -_E4M3])
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)

Stored = tuple[str, np.ndarray]  # dtype in the file, array (BF16 as u16 bits, F8 and I8 as u8)


def read_safetensors(path: Path) -> dict[str, Stored]:
    """All tensors of one file, bits untouched."""
    raw = path.read_bytes()
    (n,) = struct.unpack_from("<Q", raw)
    kinds = {"BF16": "u2", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4",
             "I8": "u1", "U8": "u1", "F8_E4M3": "u1", "F8_E8M0": "u1"}  # fmt: skip
    out = {}
    for name, info in json.loads(raw[8 : 8 + n]).items():
        if name != "__metadata__":
            begin, end = (8 + n + o for o in info["data_offsets"])
            array = np.frombuffer(raw[begin:end], "<" + kinds[info["dtype"]])
            out[name] = info["dtype"], array.reshape(info["shape"])
    return out


def e8m0(scale: np.ndarray) -> np.ndarray:
    """Values of E8M0 bytes."""
    return np.ldexp(np.float32(1), scale.astype(np.int32) - 127)


def unpack_fp4(packed: np.ndarray) -> np.ndarray:
    """Codes u8[..., out, in] of DeepSeek's FP4: two neighbours in a byte, the even one low."""
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def to_mxfp4(packed: np.ndarray, scale: np.ndarray) -> bytes:
    """DeepSeek's FP4 -> GGUF blocks: a scale byte, 16 bytes that pair element j with j + 16."""
    codes = unpack_fp4(packed).reshape(-1, 2, 16)
    paired = codes[:, 0] | codes[:, 1] << 4
    return np.concatenate([scale.reshape(-1, 1), paired], 1).astype(np.uint8).tobytes()


def dequantize(dtype: str, x: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """Any stored tensor as f32."""
    if dtype == "BF16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        assert scale is not None
        tiles = e8m0(scale).repeat(128, -2).repeat(128, -1)
        return E4M3[x] * tiles[..., : x.shape[-2], : x.shape[-1]]
    if dtype == "I8":
        assert scale is not None
        return E2M1[unpack_fp4(x)] * e8m0(scale).repeat(32, -1)
    return x.astype(np.float32)


def add_keys(w: GgufWriter, config: dict) -> None:
    """config.json -> deepseek4.* keys."""
    if config.get("scoring_func", "sqrtsoftplus") != "sqrtsoftplus":
        raise ValueError(f"scoring_func {config['scoring_func']}")
    p = "deepseek4."
    w.add("general.architecture", "deepseek4")
    w.add("general.name", config.get("_name_or_path") or "DeepSeek V4 checkpoint")
    for key, name in INTS.items():
        if name in config:
            w.add(p + key, int(config[name]), "u32")
    for key, name in FLOATS.items():
        if name in config:
            w.add(p + key, float(config[name]), "f32")
    n = config["num_hidden_layers"]
    w.add(p + "attention.compress_ratios", config["compress_ratios"], "array:i32")
    w.add(p + "swiglu_clamp_exp", [float(config.get("swiglu_limit", 0.0))] * n, "array:f32")
    w.add(p + "expert_gating_func", 4, "u32")
    w.add(p + "expert_weights_norm", bool(config.get("norm_topk_prob", True)))
    yarn = config.get("rope_scaling") or {}
    w.add(p + "rope.scaling.type", "yarn" if yarn else "none")
    if yarn:
        w.add(p + "rope.scaling.factor", float(yarn["factor"]), "f32")
        w.add(
            p + "rope.scaling.original_context_length",
            int(yarn["original_max_position_embeddings"]),
            "u32",
        )
        w.add(p + "rope.scaling.yarn_beta_fast", float(yarn["beta_fast"]), "f32")
        w.add(p + "rope.scaling.yarn_beta_slow", float(yarn["beta_slow"]), "f32")
    w.add("tokenizer.ggml.bos_token_id", int(config.get("bos_token_id", 0)), "u32")
    w.add("tokenizer.ggml.eos_token_id", int(config.get("eos_token_id", 1)), "u32")


def add_stored(
    w: GgufWriter, name: str, dtype: str, x: np.ndarray, scale: np.ndarray | None, *, f32: bool
) -> None:
    """One tensor (a stack of experts has three dimensions), exact."""
    if dtype in ("I64", "I32"):
        w.add_tensor(name, x, "I32")
    elif f32 or dtype == "F32":
        w.add_tensor(name, dequantize(dtype, x, scale), "F32")
    elif dtype in ("BF16", "F16"):
        w.add_raw(name, dtype, x.shape, np.ascontiguousarray(x).tobytes())
    elif dtype == "F8_E4M3":
        assert scale is not None
        w.add_fp8(name, x, scale)
    elif dtype == "I8":
        assert scale is not None
        w.add_raw(name, "MXFP4", (*x.shape[:-1], 2 * x.shape[-1]), to_mxfp4(x, scale))
    else:
        raise ValueError(f"{name}: {dtype}")


def convert(folder: Path | str, *, f32: bool = False, mtp: bool = False) -> GgufWriter:
    """Read a checkpoint folder; the caller may change the writer before writing it."""
    stored: dict[str, Stored] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        stored.update(read_safetensors(path))
    config = json.loads((Path(folder) / "config.json").read_text())
    w = GgufWriter()
    add_keys(w, config)
    if mtp:
        w.add("deepseek4.nextn_predict_layers", config.get("num_nextn_predict_layers", 0), "u32")

    def scale_of(name: str) -> np.ndarray | None:
        entry = stored.get(name.removesuffix("weight") + "scale")
        if entry and entry[0] != "F8_E8M0":
            raise ValueError(f"{name}: scales are {entry[0]}, not F8_E8M0")
        return entry[1] if entry else None

    for name, (dtype, x) in stored.items():
        if dtype == "F8_E8M0" or (name.startswith("mtp.") and not mtp):
            continue
        layer = re.fullmatch(r"(?:layers|(mtp))\.(\d+)\.(.*)", name)
        if not layer:
            add_stored(w, TOP[name], dtype, x, scale_of(name), f32=f32)
            continue
        prefix = f"{layer[1] or 'blk'}.{layer[2]}."
        expert = re.fullmatch(r"ffn\.experts\.(\d+)\.(w[123])\.weight", layer[3])
        if not expert:
            add_stored(w, prefix + LAYER[layer[3]], dtype, x, scale_of(name), f32=f32)
        elif expert[1] == "0":  # the first stands for the stack
            stem = name.split(".experts.")[0] + ".experts."
            names = [f"{stem}{e}.{expert[2]}.weight" for e in range(config["n_routed_experts"])]
            scales = [scale_of(n) for n in names]
            stack = None if scales[0] is None else np.stack([s for s in scales if s is not None])
            full = prefix + EXPERTS[expert[2]]
            add_stored(w, full, dtype, np.stack([stored[n][1] for n in names]), stack, f32=f32)
    return w


if __name__ == "__main__":
    files = [a for a in sys.argv[1:] if not a.startswith("--")]
    writer = convert(files[0], f32="--f32" in sys.argv, mtp="--mtp" in sys.argv)
    print(f"{writer.write(files[1])}: {len(writer.tensors)} tensors")
