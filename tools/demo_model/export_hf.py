"""The trained model in DeepSeek's own layout: sharded safetensors with FP8 and FP4 weights, config.json, tokenizer.

Rounding is part of the training's forward pass, so these files hold the trained model exactly: nothing is lost here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from attention import Compressor
from layers import Linear
from model import Block, Head, HyperConnection, Model
from rounding import fp4_scales, fp8_scales, spread_tiles, to_e2m1
from safetensors.torch import save_file

SHARD_BYTES = 15 << 20
Tensors = dict[str, torch.Tensor]


def e8m0(scales: torch.Tensor) -> torch.Tensor:
    """Powers of two as their exponent + 127."""
    exponents = (scales.contiguous().view(torch.int32) >> 23).to(torch.uint8)
    return exponents.view(torch.float8_e8m0fnu)


def put_fp8(out: Tensors, name: str, w: torch.Tensor) -> None:
    scales = fp8_scales(w)
    codes = (w / spread_tiles(scales, *w.shape)).to(torch.float8_e4m3fn)
    out[f"{name}.weight"], out[f"{name}.scale"] = codes, e8m0(scales)


def put_fp4(out: Tensors, name: str, w: torch.Tensor) -> None:
    """Two codes a byte, the even input in the low half."""
    scales = fp4_scales(w)
    v = to_e2m1(w / scales.repeat_interleave(32, -1))
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = torch.searchsorted(values, v.abs().contiguous()) + 8 * (v < 0)
    low, high = codes[:, ::2], codes[:, 1::2]
    out[f"{name}.weight"] = (low | high << 4).to(torch.uint8).view(torch.int8)
    out[f"{name}.scale"] = e8m0(scales)


def put_linear(out: Tensors, name: str, linear: Linear) -> None:
    if linear.fp8:
        put_fp8(out, name, linear.weight)
    else:
        out[f"{name}.weight"] = linear.weight.bfloat16()


def put_compressor(out: Tensors, name: str, c: Compressor) -> None:
    put_linear(out, f"{name}.wkv", c.wkv)
    put_linear(out, f"{name}.wgate", c.wgate)
    out[f"{name}.ape"] = c.ape
    out[f"{name}.norm.weight"] = c.norm.bfloat16()


def put_hc(out: Tensors, name: str, hc: HyperConnection | Head) -> None:
    out[f"{name}_fn"], out[f"{name}_base"], out[f"{name}_scale"] = hc.fn, hc.base, hc.scale


def put_block(out: Tensors, name: str, block: Block) -> None:
    attn, ffn = block.attn, block.ffn
    put_hc(out, f"{name}.hc_attn", block.hc_attn)
    put_hc(out, f"{name}.hc_ffn", block.hc_ffn)
    out[f"{name}.attn_norm.weight"] = block.attn_norm.bfloat16()
    out[f"{name}.ffn_norm.weight"] = block.ffn_norm.bfloat16()
    for key in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b"):
        put_linear(out, f"{name}.attn.{key}", getattr(attn, key))
    out[f"{name}.attn.q_norm.weight"] = attn.q_norm.bfloat16()
    out[f"{name}.attn.kv_norm.weight"] = attn.kv_norm.bfloat16()
    out[f"{name}.attn.attn_sink"] = attn.attn_sink
    if attn.compressor is not None:
        put_compressor(out, f"{name}.attn.compressor", attn.compressor)
    if attn.indexer is not None:
        put_compressor(out, f"{name}.attn.indexer.compressor", attn.indexer.compressor)
        put_linear(out, f"{name}.attn.indexer.wq_b", attn.indexer.wq_b)
        put_linear(out, f"{name}.attn.indexer.weights_proj", attn.indexer.weights_proj)
    out[f"{name}.ffn.gate.weight"] = ffn.gate.bfloat16()
    if ffn.hashed:
        out[f"{name}.ffn.gate.tid2eid"] = ffn.tid2eid.long()
    else:
        out[f"{name}.ffn.gate.bias"] = ffn.bias
    width = block.ffn.c.moe_intermediate_size
    for e in range(len(ffn.gate_up)):
        put_fp4(out, f"{name}.ffn.experts.{e}.w1", ffn.gate_up[e, :width])
        put_fp4(out, f"{name}.ffn.experts.{e}.w3", ffn.gate_up[e, width:])
        put_fp4(out, f"{name}.ffn.experts.{e}.w2", ffn.down[e])
    shared = ffn.shared_gate_up.weight
    put_fp8(out, f"{name}.ffn.shared_experts.w1", shared[:width])
    put_fp8(out, f"{name}.ffn.shared_experts.w3", shared[width:])
    put_linear(out, f"{name}.ffn.shared_experts.w2", ffn.shared_down)


def tensors_of(model: Model) -> Tensors:
    out: Tensors = {
        "embed.weight": model.embed.bfloat16(),
        "head.weight": model.lm_head.bfloat16(),
        "norm.weight": model.head.norm.bfloat16(),
    }
    put_hc(out, "hc_head", model.head)
    for i, block in enumerate(model.blocks):
        put_block(out, f"layers.{i}", block)
    if model.mtp is not None:
        put_linear(out, "mtp.0.e_proj", model.mtp.e_proj)
        put_linear(out, "mtp.0.h_proj", model.mtp.h_proj)
        out["mtp.0.enorm.weight"] = model.mtp.enorm.bfloat16()
        out["mtp.0.hnorm.weight"] = model.mtp.hnorm.bfloat16()
        put_hc(out, "mtp.0.hc_head", model.mtp.head)
        out["mtp.0.norm.weight"] = model.mtp.head.norm.bfloat16()
        put_block(out, "mtp.0", model.mtp.block)
    return out


@torch.no_grad()
def export(model: Model, tokenizer: Path, folder: Path) -> None:
    """Write the checkpoint; the model may be on any device and is left as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    on_cpu = Model(model.c)
    on_cpu.load_state_dict({k: v.cpu() for k, v in model.state_dict().items()})
    shards: list[Tensors] = [{}]
    size = 0
    for name, t in tensors_of(on_cpu).items():
        if size + t.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = t.detach().contiguous()
        size += t.nbytes
    index = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    total = sum(t.nbytes for shard in shards for t in shard.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
    )
    (folder / "config.json").write_text(json.dumps(model.c.to_huggingface(), indent=1))
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
