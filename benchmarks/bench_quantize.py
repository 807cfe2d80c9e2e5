"""grebe quantize on a checkpoint with Flash's shapes and few layers: rate, peak memory, and what kills do to the result.

    python benchmarks/bench_quantize.py DIR [--layers 3] [--experts 256] [--recipe mxfp4] [--kills 3]

Makes the checkpoint in DIR/hf (random codes; all experts of a layer are the same bytes on disk, which the reader does not know) and
converts it in a process of its own, whose peak resident memory is that of the kernel's account. With --kills the conversion is
killed that often at random moments, started again, and must give the same bytes as the undisturbed one. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from grebe.quantize.layout import layer_shapes

CONFIG = {
    "model_type": "deepseek_v4", "hidden_size": 4096, "vocab_size": 129280, "num_attention_heads": 64, "head_dim": 512,
    "qk_rope_head_dim": 64, "q_lora_rank": 1024, "o_groups": 8, "o_lora_rank": 1024, "hc_mult": 4, "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6, "rms_norm_eps": 1e-6, "num_experts_per_tok": 6, "n_shared_experts": 1, "moe_intermediate_size": 2048,
    "index_n_heads": 64, "index_head_dim": 128, "index_topk": 512, "sliding_window": 128, "routed_scaling_factor": 1.5,
    "rope_theta": 10000.0, "compress_rope_theta": 160000.0, "max_position_embeddings": 1048576, "num_hash_layers": 1,
    "swiglu_limit": 10.0, "norm_topk_prob": True,
}  # fmt: skip
ITEM = {"BF16": 2, "F32": 4, "I64": 8, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1}
FP8 = ("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "w1", "w2", "w3")


class Shard:
    """A safetensors file; a block of data may have several names."""

    def __init__(self, rng: np.random.Generator, n_experts: int) -> None:
        self.rng, self.n_experts, self.header, self.parts, self.size = rng, n_experts, {}, [], 0

    def block(self, dtype: str, shape: tuple[int, ...], top: int = 0) -> dict:
        """Random data of a type; the entry may be given to several tensors."""
        n = int(np.prod(shape))
        if dtype == "F8_E8M0":
            raw = self.rng.integers(110, 121, n, np.uint8)
        elif dtype == "F8_E4M3":
            raw = self.rng.integers(0, 112, n, np.uint8) | (
                self.rng.integers(0, 2, n, np.uint8) << 7
            )
        elif dtype == "I8":
            raw = self.rng.integers(0, 256, n, np.uint8)
        elif dtype == "I64":
            raw = self.rng.integers(0, top, n, np.int64)
        else:
            x = self.rng.standard_normal(n, np.float32) * np.float32(0.02)
            raw = x if dtype == "F32" else (x.view(np.uint32) >> 16).astype(np.uint16)
        data = raw.tobytes()
        assert len(data) == n * ITEM[dtype]
        entry = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [self.size, self.size + len(data)],
        }
        self.parts.append(data)
        self.size += len(data)
        return entry

    def matrix(self, name: str, shape: tuple[int, ...]) -> None:
        """A dense tensor as the checkpoint has it: FP8 with scales, or BF16, F32."""
        stem = name.removesuffix(".weight")
        if stem.rsplit(".", 1)[-1] in FP8 and "compressor" not in name:
            self.header[name] = self.block("F8_E4M3", shape)
            self.header[f"{stem}.scale"] = self.block("F8_E8M0", tuple(-(-n // 128) for n in shape))
        elif name.endswith("tid2eid"):
            self.header[name] = self.block("I64", shape, self.n_experts)
        else:
            dtype = "BF16" if name.endswith(".weight") else "F32"
            self.header[name] = self.block(dtype, shape)

    def write(self, path: Path) -> None:
        """The file."""
        head = json.dumps(self.header).encode()
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            file.writelines(self.parts)


def make(folder: Path, n_layers: int, n_experts: int) -> None:
    folder.mkdir(parents=True)
    ratios = [0, 4, 128, 4, 128, 4][:n_layers]
    config = {
        **CONFIG,
        "num_hidden_layers": n_layers,
        "n_routed_experts": n_experts,
        "compress_ratios": ratios,
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(3)
    d, ff, n = config["hidden_size"], config["moe_intermediate_size"], config["hc_mult"]
    for i in range(n_layers):
        shard = Shard(rng, n_experts)
        for name, shape in layer_shapes(config, i).items():
            shard.matrix(f"layers.{i}.{name}", shape)
        for name, (rows, width) in {"w1": (ff, d), "w2": (d, ff), "w3": (ff, d)}.items():
            codes, scales = (
                shard.block("I8", (rows, width // 2)),
                shard.block("F8_E8M0", (rows, width // 32)),
            )
            for e in range(n_experts):
                shard.header[f"layers.{i}.ffn.experts.{e}.{name}.weight"] = codes
                shard.header[f"layers.{i}.ffn.experts.{e}.{name}.scale"] = scales
        shard.write(folder / f"layer-{i}.safetensors")
    shard = Shard(rng, n_experts)
    for name, shape in (("embed.weight", (config["vocab_size"], d)), ("head.weight", (config["vocab_size"], d)), ("norm.weight", (d,)),
                        ("hc_head_fn", (n, n * d)), ("hc_head_base", (n,)), ("hc_head_scale", (1,))):  # fmt: skip
        shard.matrix(name, shape)
    shard.write(folder / "top.safetensors")


def start(folder: Path, out: Path, a: argparse.Namespace) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "grebe",
        "quantize",
        str(folder),
        str(out),
        "--recipe",
        a.recipe,
        "--no-tokenizer",
        "--json",
    ]
    return subprocess.Popen(
        [*command, "--threads", str(a.threads)], stdout=subprocess.PIPE, text=True
    )


def finish(child: subprocess.Popen) -> tuple[dict, int]:
    """Report and peak resident bytes."""
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"grebe quantize ended with {child.returncode}")
    return json.loads(text.splitlines()[-1]), usage.ru_maxrss * 1024


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path)
    p.add_argument("--layers", type=int, default=3)
    p.add_argument("--experts", type=int, default=256)
    p.add_argument("--recipe", default="mxfp4")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--kills", type=int, default=0)
    p.add_argument("--make-only", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    hf, whole = a.folder / "hf", a.folder / "whole.gguf"
    if a.make_only:
        return make(hf, a.layers, a.experts)
    # In a process of its own: the kernel counts what a parent had before it started a child as the child's.
    subprocess.run([sys.executable, *sys.argv, "--make-only"], check=True)
    begin = time.monotonic()
    report, peak = finish(start(hf, whole, a))
    seconds = time.monotonic() - begin
    result = {"recipe": a.recipe, "layers": a.layers, "experts": a.experts, "bytes": report["n_bytes"], "seconds": round(seconds, 1),
              "out_mb_s": round(report["n_bytes"] / 1e6 / seconds, 1), "peak_rss": peak}  # fmt: skip
    print(
        f"{a.recipe}: {report['n_bytes'] / 1e9:.2f} GB in {seconds:.0f} s, peak resident memory {peak / 1e6:.0f} MB",
        flush=True,
    )
    whole.unlink()
    if a.kills:
        rng, out = random.Random(5), a.folder / "killed.gguf"
        for _ in range(a.kills):
            child = start(hf, out, a)
            time.sleep(rng.uniform(0.2, 0.5) * seconds)
            child.kill()
            child.wait()
            assert not out.exists(), "killed too late: it had finished"
        again, peak = finish(start(hf, out, a))
        same = again["sha256"] == report["sha256"]
        print(
            f"killed {a.kills} times, {again['resumed_bytes'] / 1e9:.2f} GB resumed at last: {'the same bytes' if same else 'OTHER BYTES'}"
        )
        result |= {
            "kills": a.kills,
            "same": same,
            "resumed_bytes": again["resumed_bytes"],
            "peak_rss_resumed": peak,
        }
        out.unlink()
    shutil.rmtree(hf)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
