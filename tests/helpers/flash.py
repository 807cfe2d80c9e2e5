"""A file with every tensor of DeepSeek V4 Flash in the usual 2-bit mix, and no weights in it.

The tensors are holes (zeros that take no disk space): good for sizes, offsets and dispatches.

    python tests/helpers/flash.py OUT.gguf     # 87 GB on paper, 8 MB on disk
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from gguf_writer import GgufWriter
from tiny_gguf import Shape, add_keys, layer_shapes

FLASH = Shape(
    hidden=4096,
    vocab=129280,
    heads=64,
    head_dim=512,
    rope_dim=64,
    q_lora=1024,
    o_groups=8,
    o_lora=1024,
    window=128,
    index_heads=64,
    index_head_dim=128,
    top_k=512,
    streams=4,
    experts=256,
    used=6,
    ff=2048,
    hash_layers=3,
    ratios=(0, 0, *[4, 128] * 20, 4),
)

# The rest: F32 vectors, Q8_0 matrices.
TYPES = {
    "token_embd.weight": "F16",
    "hc_attn_fn.weight": "F16",
    "hc_ffn_fn.weight": "F16",
    "output_hc_fn.weight": "F16",
    "attn_compressor_kv.weight": "F16",
    "attn_compressor_gate.weight": "F16",
    "attn_compressor_ape.weight": "F16",
    "indexer_compressor_kv.weight": "F16",
    "indexer_compressor_gate.weight": "F16",
    "indexer_compressor_ape.weight": "F16",
    "indexer.attn_q_b.weight": "F16",
    "indexer.proj.weight": "F16",
    "ffn_gate_inp.weight": "F16",
    "ffn_gate_exps.weight": "IQ2_XXS",
    "ffn_up_exps.weight": "IQ2_XXS",
    "ffn_down_exps.weight": "Q2_K",
}


def flash_model(shape: Shape = FLASH) -> GgufWriter:
    """The file as a writer; a shape with fewer layers makes a shorter one."""
    w = GgufWriter()
    add_keys(w, shape)
    w.add("general.name", "Flash without weights")
    w.add("deepseek4.context_length", 1048576, "u32")

    def add(name: str, dims: tuple[int, ...]) -> None:
        kind = name.split(".", 2)[-1] if name.startswith("blk.") else name
        w.add_hole(name, TYPES.get(kind, "F32" if len(dims) == 1 else "Q8_0"), dims)

    s = shape
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
            w.add_hole(f"blk.{i}.ffn_gate_tid2eid.weight", "I32", (s.vocab, s.used))
    return w


if __name__ == "__main__":
    print(flash_model().write(sys.argv[1]))
