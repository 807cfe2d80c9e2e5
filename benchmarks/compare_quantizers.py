"""Our quantizers beside llama.cpp's: weighted error and speed, on the same numbers.

    python benchmarks/compare_quantizers.py LIBRARY [--checkpoint DIR] [--rows 256] [--types Q2_K,IQ2_XXS]

LIBRARY is a shared library with llama.cpp's ``ggml_quantize_chunk`` (ggml-base of any build of it). Both get the same importance
vector; the error is the importance-weighted squared error over the weighted sum of squares, of what the ``gguf`` package reads
back from the bytes. ``ratio`` below 1: ours is smaller. MB/s counts f32 input a second of CPU time of one thread, which a busy machine disturbs less than the clock. Weights: Gaussian, Student t with
three degrees of freedom, and, with --checkpoint, matrices of a safetensors checkpoint. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from grebe import _engine


class Llama:
    """ggml_quantize_chunk of a shared library."""

    def __init__(self, path: str) -> None:
        self.lib = ctypes.CDLL(path)
        self.fn = self.lib.ggml_quantize_chunk
        self.fn.restype = ctypes.c_size_t
        p, n = ctypes.c_void_p, ctypes.c_int64
        self.fn.argtypes = [ctypes.c_int, p, p, n, n, n, p]
        self.lib.ggml_quantize_init.argtypes = [ctypes.c_int]

    def quantize(self, dtype: str, x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
        """Bytes of an f32 matrix."""
        number = GGMLQuantizationType[dtype].value
        self.lib.ggml_quantize_init(number)
        out = np.empty(x.size * 5, np.uint8)
        w = None if importance is None else importance.ctypes.data
        n = self.fn(number, x.ctypes.data, out.ctypes.data, 0, *x.shape, w)
        return out[:n]


def error(dtype: str, data: np.ndarray, x: np.ndarray, w: np.ndarray) -> float:
    back = dequantize(data.reshape(len(x), -1), GGMLQuantizationType[dtype]).reshape(x.shape)
    return float(
        (w * (back.astype(np.float64) - x) ** 2).sum() / (w * x.astype(np.float64) ** 2).sum()
    )


def trained(folder: Path, n_rows: int) -> dict[str, np.ndarray]:
    """An attention matrix, an expert and the head of a checkpoint, rows of a multiple of 256."""
    from grebe.quantize.checkpoint import Checkpoint

    out = {}
    checkpoint = Checkpoint(folder)
    for name in (
        "layers.1.attn.wq_b.weight",
        "layers.1.ffn.experts.0.w1.weight",
        "layers.2.ffn.shared_experts.w3.weight",
        "head.weight",
    ):
        if name in checkpoint.tensors and checkpoint.shape(name)[1] % 256 == 0:
            out[name.removesuffix(".weight")] = np.ascontiguousarray(checkpoint.f32(name)[:n_rows])
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("library")
    p.add_argument("--checkpoint", type=Path)
    p.add_argument("--rows", type=int, default=64)
    p.add_argument("--columns", type=int, default=2048)
    p.add_argument("--types", default=",".join(_engine.quantizable_dtypes()))
    p.add_argument("--isa", default="")
    a = p.parse_args()
    llama = Llama(a.library)
    rng = np.random.default_rng(7)
    shape = a.rows, a.columns
    inputs = {
        "gaussian": rng.standard_normal(shape, np.float32) * np.float32(0.02),
        "heavy": (rng.standard_t(3, shape) * 0.02).astype(np.float32),
    }
    if a.checkpoint:
        inputs |= trained(a.checkpoint, a.rows)
    rows = []
    print(
        f"{'type':8} {'weights':28} {'imp':4} {'ours':>10} {'theirs':>10} {'ratio':>7} {'MB/s':>8} {'theirs':>8}"
    )
    for dtype in a.types.split(","):
        for name, x in inputs.items():
            skewed = np.exp(rng.standard_normal(x.shape[1]) * 1.0).astype(np.float32)
            for kind, w in (("none", None), ("exp", skewed)):
                if w is None and dtype in ("IQ2_XXS", "IQ2_S"):
                    theirs_w = np.ones(x.shape[1], np.float32)  # it refuses to go without
                else:
                    theirs_w = w
                best = [1e9, 1e9]
                for _ in range(2):  # interleaved
                    start = time.thread_time()
                    ours = _engine.quantize(dtype, x, w, n_threads=1, isa=a.isa)
                    middle = time.thread_time()
                    theirs = llama.quantize(dtype, x, theirs_w)
                    end = time.thread_time()
                    best = [min(best[0], middle - start), min(best[1], end - middle)]
                ones = np.ones(x.shape[1]) if w is None else w.astype(np.float64)
                e, f = error(dtype, ours, x, ones), error(dtype, theirs, x, ones)
                speed = [x.nbytes / 1e6 / t for t in best]
                rows.append(
                    {"type": dtype, "weights": name, "importance": kind, "error": e, "error_llama_cpp": f,
                     "ratio": e / f if f else 1.0, "mb_s": speed[0], "mb_s_llama_cpp": speed[1]}
                )  # fmt: skip
                r = rows[-1]
                print(
                    f"{dtype:8} {name[:28]:28} {kind:4} {e:10.3e} {f:10.3e} {r['ratio']:7.4f} {speed[0]:8.1f} {speed[1]:8.1f}",
                    flush=True,
                )
    print(json.dumps({"rows": rows, "worst_ratio": max(r["ratio"] for r in rows)}))


if __name__ == "__main__":
    main()
