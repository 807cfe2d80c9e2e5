"""Read the exported checkpoint back: names and f32 values of DeepSeek's layout, FP8 and FP4 decoded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from config import ModelConfig
from layers import Linear
from model import Model
from moe import MixtureOfExperts
from safetensors.torch import load_file

FP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def _scales(t: torch.Tensor) -> torch.Tensor:
    return torch.exp2(t.view(torch.uint8).float() - 127)


def _decode(w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    s = _scales(scale)
    if w.dtype == torch.float8_e4m3fn:
        full = s.repeat_interleave(128, 0).repeat_interleave(128, 1)
        return w.float() * full[: w.shape[0], : w.shape[1]]
    codes = w.view(torch.uint8)
    pair = torch.stack([codes & 15, codes >> 4], -1).flatten(1).long()
    return FP4_VALUES[pair] * s.repeat_interleave(32, 1)


def read(folder: Path) -> tuple[dict[str, np.ndarray], dict]:
    """-> arrays by name (f32, or i64 for expert tables; the scales are applied and gone), config.json"""
    raw: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        raw |= load_file(file)
    out = {}
    for name, t in raw.items():
        if name.endswith(".scale") and f"{name[:-6]}.weight" in raw:
            continue
        scale = raw.get(f"{name[:-7]}.scale") if name.endswith(".weight") else None
        value = t if scale is None else _decode(t, scale)
        out[name] = (value if value.dtype == torch.int64 else value.float()).numpy()
    return out, json.loads((folder / "config.json").read_text())


def load_model(folder: Path) -> Model:
    """The trainer's model with the checkpoint's weights, f32 on the CPU.

    They are on their FP8 and FP4 grids; rounding them in every forward pass would change nothing and is left out.
    """
    weights, _ = read(folder)
    c = config_of(json.loads((folder / "config.json").read_text()))
    model = Model(c)
    state = model.state_dict()
    loaded = {name: torch.from_numpy(_assemble(name, weights, c)) for name in state}
    model.load_state_dict(
        {k: v.to(state[k].dtype).reshape(state[k].shape) for k, v in loaded.items()}
    )
    for module in model.modules():
        if isinstance(module, Linear):
            module.fp8 = False
        elif isinstance(module, MixtureOfExperts):
            module.fp4 = False
    return model


def config_of(official: dict) -> ModelConfig:
    """The numbers of a preset from config.json; what is not listed there is a constant of the architecture."""
    return ModelConfig(
        vocab_size=official["vocab_size"],
        hidden_size=official["hidden_size"],
        n_layers=official["num_hidden_layers"],
        n_mtp_layers=official["num_nextn_predict_layers"],
        n_heads=official["num_attention_heads"],
        head_dim=official["head_dim"],
        rope_dim=official["qk_rope_head_dim"],
        q_lora_rank=official["q_lora_rank"],
        o_groups=official["o_groups"],
        o_lora_rank=official["o_lora_rank"],
        window_size=official["sliding_window"],
        index_n_heads=official["index_n_heads"],
        index_head_dim=official["index_head_dim"],
        index_top_k=official["index_topk"],
        n_experts=official["n_routed_experts"],
        n_experts_per_token=official["num_experts_per_tok"],
        moe_intermediate_size=official["moe_intermediate_size"],
        n_hash_layers=official["num_hash_layers"],
        compress_ratios=official["compress_ratios"],
    )


def _assemble(name: str, weights: dict[str, np.ndarray], c: ModelConfig) -> np.ndarray:
    """The array of one state entry of Model; fused matrices are put together again."""
    top = {
        "embed": "embed.weight",
        "lm_head": "head.weight",
        "head.norm": "norm.weight",
        "mtp.head.norm": "mtp.0.norm.weight",
        "mtp.enorm": "mtp.0.enorm.weight",
        "mtp.hnorm": "mtp.0.hnorm.weight",
    }
    if name in top:
        return weights[top[name]]
    name = (
        name.replace("mtp.block.", "mtp.0.").replace("mtp.", "mtp.0.").replace("mtp.0.0.", "mtp.0.")
    )
    name = name.replace("blocks.", "layers.")
    for stem in ("hc_attn", "hc_ffn", "head"):
        for leaf in ("fn", "base", "scale"):
            if name.endswith(f"{stem}.{leaf}"):
                hc = "hc_head" if stem == "head" else stem
                return weights[name.removesuffix(f"{stem}.{leaf}") + f"{hc}_{leaf}"]
    prefix = name.split(".ffn.")[0]
    experts = f"{prefix}.ffn.experts"

    def stack(key: str) -> np.ndarray:
        return np.stack([weights[f"{experts}.{e}.{key}.weight"] for e in range(c.n_experts)])

    if name.endswith("ffn.gate_up"):
        return np.concatenate([stack("w1"), stack("w3")], 1)
    if name.endswith("ffn.down"):
        return stack("w2")
    shared = f"{prefix}.ffn.shared_experts"
    if name.endswith("shared_gate_up.weight"):
        return np.concatenate([weights[f"{shared}.w1.weight"], weights[f"{shared}.w3.weight"]])
    if name.endswith("shared_down.weight"):
        return weights[f"{shared}.w2.weight"]
    if name.endswith("ffn.bias"):
        return weights[f"{prefix}.ffn.gate.bias"]
    if name.endswith("ffn.tid2eid"):
        return weights[f"{prefix}.ffn.gate.tid2eid"]
    return weights[name if name in weights else f"{name}.weight"]
