"""Which tensors a model has, what the checkpoint and GGUF call them, and their shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError, UnsupportedModelError
from .checkpoint import Checkpoint

__all__ = ["Target", "draft_targets", "model_targets"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Target:
    """A tensor of the GGUF file and where its weights come from.

    Attributes:
        name: GGUF name.
        sources: checkpoint tensors; several are stacked along a new first dimension.
        shape: row-major, of the whole.
        stacked: whether the sources are stacked, even if there is one.
    """

    name: str
    sources: tuple[str, ...]
    shape: Shape
    stacked: bool = False


TOP = {
    "embed.weight": "token_embd.weight",
    "head.weight": "output.weight",
    "norm.weight": "output_norm.weight",
    "hc_head_fn": "output_hc_fn.weight",
    "hc_head_base": "output_hc_base.weight",
    "hc_head_scale": "output_hc_scale.weight",
}
# Below layers.N. and blk.N.; a draft block's own tensors keep their names.
LAYER = {
    **{f"hc_attn_{part}": f"hc_attn_{part}.weight" for part in ("fn", "base", "scale")},
    **{f"hc_ffn_{part}": f"hc_ffn_{part}.weight" for part in ("fn", "base", "scale")},
    "attn_norm.weight": "attn_norm.weight",
    "attn.wq_a.weight": "attn_q_a.weight",
    "attn.q_norm.weight": "attn_q_a_norm.weight",
    "attn.wq_b.weight": "attn_q_b.weight",
    "attn.wkv.weight": "attn_kv.weight",
    "attn.kv_norm.weight": "attn_kv_a_norm.weight",
    "attn.attn_sink": "attn_sinks.weight",
    "attn.wo_a.weight": "attn_output_a.weight",
    "attn.wo_b.weight": "attn_output_b.weight",
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
    "ffn_norm.weight": "ffn_norm.weight",
    "ffn.gate.weight": "ffn_gate_inp.weight",
    "ffn.gate.bias": "exp_probs_b.bias",
    "ffn.gate.tid2eid": "ffn_gate_tid2eid.weight",
    "ffn.shared_experts.w1.weight": "ffn_gate_shexp.weight",
    "ffn.shared_experts.w3.weight": "ffn_up_shexp.weight",
    "ffn.shared_experts.w2.weight": "ffn_down_shexp.weight",
}  # fmt: skip
EXPERTS = {"w1": "ffn_gate_exps.weight", "w3": "ffn_up_exps.weight", "w2": "ffn_down_exps.weight"}


def _number(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise UnsupportedModelError(
            f"config.json: {key} is {value!r}; expected a positive number",
            key,
            str(value),
            "a positive number",
        )
    return value


def layer_shapes(config: dict[str, Any], i: int) -> dict[str, Shape]:
    """Checkpoint names below a layer, experts apart, and their shapes."""

    def n(key: str) -> int:
        return _number(config, key)

    d, c, q = n("hidden_size"), n("head_dim"), n("q_lora_rank")
    heads, groups, streams = n("num_attention_heads"), n("o_groups"), n("hc_mult")
    experts, low, ff = n("n_routed_experts"), groups * n("o_lora_rank"), n("moe_intermediate_size")
    mixes = streams * (2 + streams)
    shapes: dict[str, Shape] = {}
    for part in ("attn", "ffn"):
        shapes[f"hc_{part}_fn"] = (mixes, streams * d)
        shapes[f"hc_{part}_base"] = (mixes,)
        shapes[f"hc_{part}_scale"] = (3,)
    shapes |= {
        "attn_norm.weight": (d,),
        "attn.wq_a.weight": (q, d),
        "attn.q_norm.weight": (q,),
        "attn.wq_b.weight": (heads * c, q),
        "attn.wkv.weight": (c, d),
        "attn.kv_norm.weight": (c,),
        "attn.attn_sink": (heads,),
        "attn.wo_a.weight": (low, heads * c // groups),
        "attn.wo_b.weight": (d, low),
    }
    ratio = config["compress_ratios"][i]
    compressors = {"attn.compressor": c} if ratio else {}
    if ratio == 4:
        row = n("index_head_dim")
        compressors["attn.indexer.compressor"] = row
        shapes["attn.indexer.wq_b.weight"] = (n("index_n_heads") * row, q)
        shapes["attn.indexer.weights_proj.weight"] = (n("index_n_heads"), d)
    for stem, row in compressors.items():
        width = 2 * row if ratio == 4 else row
        shapes[f"{stem}.ape"] = (ratio, width)
        shapes[f"{stem}.wkv.weight"] = shapes[f"{stem}.wgate.weight"] = (width, d)
        shapes[f"{stem}.norm.weight"] = (row,)
    shapes |= {"ffn_norm.weight": (d,), "ffn.gate.weight": (experts, d)}
    if i < config.get("num_hash_layers", 0):
        shapes["ffn.gate.tid2eid"] = (n("vocab_size"), n("num_experts_per_tok"))
    else:
        shapes["ffn.gate.bias"] = (experts,)
    for name, shape in (("w1", (ff, d)), ("w3", (ff, d)), ("w2", (d, ff))):
        shapes[f"ffn.shared_experts.{name}.weight"] = shape
    return shapes


def _require(checkpoint: Checkpoint, name: str, shape: Shape) -> None:
    stored = checkpoint.tensors.get(name)
    if stored is None:
        folder = str(checkpoint.folder)
        raise FormatError(f"{folder}: tensor {name} is missing; expected {list(shape)}", folder)
    found = checkpoint.shape(name)
    if found != shape:
        path = str(stored.path)
        message = f"{path}: {name} is {list(found)}; by config.json it is {list(shape)}"
        raise FormatError(message, path, stored.offset)


def _require_one_kind(checkpoint: Checkpoint, t: Target) -> None:
    kinds = {checkpoint.kind(source) for source in t.sources}
    if len(kinds) > 1:
        folder = str(checkpoint.folder)
        raise FormatError(f"{folder}: experts of {t.name} are {sorted(kinds)}", folder)


def model_targets(checkpoint: Checkpoint) -> list[Target]:
    """The tensors of the model without its draft layers, all checked to be there."""
    config = checkpoint.config
    if config.get("model_type", "deepseek_v4") != "deepseek_v4":
        found = str(config["model_type"])
        message = f"config.json: model_type is {found}; expected deepseek_v4"
        raise UnsupportedModelError(message, "model_type", found, "deepseek_v4")
    n_layers = _number(config, "num_hidden_layers")
    ratios = config.get("compress_ratios")
    if (
        not isinstance(ratios, list)
        or len(ratios) < n_layers
        or any(r not in (0, 4, 128) for r in ratios)
    ):
        message = f"config.json: compress_ratios is not {n_layers} numbers of 0, 4, 128"
        raise UnsupportedModelError(message, "compress_ratios", str(ratios), "0, 4 or 128 each")
    n_hash = config.get("num_hash_layers", 0)
    if type(n_hash) is not int or n_hash < 0:
        message = f"config.json: num_hash_layers is {n_hash!r}; expected a number"
        raise UnsupportedModelError(message, "num_hash_layers", repr(n_hash), "a number")
    d, vocab = _number(config, "hidden_size"), _number(config, "vocab_size")
    streams, ff = _number(config, "hc_mult"), _number(config, "moe_intermediate_size")
    n_experts = _number(config, "n_routed_experts")
    if n_experts > len(checkpoint.tensors):  # before as many names are made
        folder = str(checkpoint.folder)
        message = (
            f"{folder}: {len(checkpoint.tensors)} tensors; config.json has {n_experts} experts"
        )
        raise FormatError(message, folder)
    shapes: dict[str, Shape] = {
        "embed.weight": (vocab, d),
        "head.weight": (vocab, d),
        "norm.weight": (d,),
        "hc_head_fn": (streams, streams * d),
        "hc_head_base": (streams,),
        "hc_head_scale": (1,),
    }
    targets = [Target(TOP[name], (name,), shape) for name, shape in shapes.items()]
    for i in range(n_layers):
        for name, shape in layer_shapes(config, i).items():
            targets.append(Target(f"blk.{i}.{LAYER[name]}", (f"layers.{i}.{name}",), shape))
        for name, shape in (("w1", (ff, d)), ("w3", (ff, d)), ("w2", (d, ff))):
            sources = tuple(f"layers.{i}.ffn.experts.{e}.{name}.weight" for e in range(n_experts))
            full = (n_experts, *shape)
            targets.append(Target(f"blk.{i}.{EXPERTS[name]}", sources, full, stacked=True))
    for t in targets:
        for source in t.sources:
            _require(checkpoint, source, t.shape[1:] if t.stacked else t.shape)
        _require_one_kind(checkpoint, t)
    return targets


def draft_targets(checkpoint: Checkpoint) -> list[Target]:
    """The draft layers (one MTP block, or DSpark's stages) under the names mtp.N.*.

    Their shapes are taken as they are: grebe does not run them, and the stages differ.
    """
    targets: list[Target] = []
    stacked: set[tuple[str, str]] = set()
    for name in checkpoint.tensors:
        match = re.fullmatch(r"(mtp\.\d+)\.(.*)", name)
        is_scale = name.endswith(".scale") and f"{name[:-5]}weight" in checkpoint.tensors
        if match is None or is_scale:
            continue
        stem, rest = match.groups()
        expert = re.fullmatch(r"ffn\.experts\.(\d+)\.(w[123])\.weight", rest)
        if expert is None:
            gguf = LAYER.get(
                rest, rest if rest.endswith((".weight", ".bias")) else f"{rest}.weight"
            )
            shape = checkpoint.shape(name)
            if not shape:
                raise FormatError(f"{checkpoint.tensors[name].path}: {name} has no dimension")
            targets.append(Target(f"{stem}.{gguf}", (name,), shape))
        elif (stem, expert[2]) not in stacked:
            stacked.add((stem, expert[2]))
            targets.append(_draft_experts(checkpoint, stem, expert[2], checkpoint.shape(name)))
    return targets


def _draft_experts(checkpoint: Checkpoint, stem: str, which: str, shape: Shape) -> Target:
    """As many as the stage's router has rows."""
    gate = checkpoint.tensors.get(f"{stem}.ffn.gate.weight")
    if gate is None or not gate.shape:
        folder = str(checkpoint.folder)
        raise FormatError(f"{folder}: {stem} has experts and no {stem}.ffn.gate.weight", folder)
    sources = tuple(f"{stem}.ffn.experts.{e}.{which}.weight" for e in range(gate.shape[0]))
    for source in sources:
        _require(checkpoint, source, shape)
    full = (len(sources), *shape)
    target = Target(f"{stem}.{EXPERTS[which]}", sources, full, stacked=True)
    _require_one_kind(checkpoint, target)
    return target
