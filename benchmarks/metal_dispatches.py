"""What the Metal backend encodes for one decoded token of DeepSeek V4 Flash, and how near it is to the least.

Runs anywhere: the device is the simulated one with execution off, the file has Flash's tensors but no
weights, so only the encoded dispatches count. Bytes are those that each dispatch is bound to read from
memory once: weights, cache rows, index rows. The ideal is section 8 of docs/architecture.md: every weight of
the token once, every attended and scored row once.

    python benchmarks/metal_dispatches.py            # tables for docs/metal.md
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

KV_ROW, INDEX_ROW, WINDOW, TOP_K = 584, 68, 128, 512


def open_flash(folder: str):
    """Flash on a simulated device that executes nothing and has room for everything."""
    os.environ["FAKE_METAL_EXECUTE"] = "0"
    os.environ["FAKE_METAL_WORKING_SET_BYTES"] = str(192 << 30)
    os.environ["FAKE_METAL_MAX_BUFFER_BYTES"] = str(72 << 30)
    from tests.metal_emu.device.build import build

    os.environ["GREBE_TEST_METAL_DEVICE"] = str(build())
    import grebe
    from flash import flash_model

    path = flash_model().write(Path(folder) / "flash.gguf")
    return grebe.Model.load(path, backend="metal", prefill_chunk=4096)


def trace(model) -> list[tuple[str, bool, int]]:
    lines = (line.split("\t") for line in model._live.trace().splitlines())
    return [(kernel, barrier == "1", int(n)) for kernel, barrier, n in lines]


PRODUCTS = (("q_a, kv, compressors", "q_b", "o_a", "o_b and mixes"), ("router",), ("output head",))


def parts(records: list[tuple[str, bool, int]]) -> list[str]:
    """What each dispatch is for; products by their place after the hc_finish that begins a sublayer."""
    n_sublayers = sum(kernel == "hc_finish" for kernel, *_ in records) - 1
    out, sublayer, place = [], -1, 0
    for kernel, *_ in records:
        name = kernel
        if kernel == "hc_finish":
            sublayer, place = sublayer + 1, 0
        elif kernel.startswith("matvec"):
            name = f"matvec: {PRODUCTS[2 if sublayer == n_sublayers else sublayer % 2][place]}"
            place += 1
        out.append(name)
    return out


def ideal_bytes(model, depth: int) -> tuple[int, int]:
    """Weights, and rows [V4 8.1, 8.2], of the token at position `depth`."""
    rows = index = 0
    n = depth + 1
    selects = n // 4 > TOP_K
    for ratio in model.config.compress_ratios:
        rows += min(n, WINDOW) + (min(TOP_K, n // 4) if ratio == 4 else n // ratio if ratio else 0)
        index += n // 4 if ratio == 4 and selects else 0
    skipped = 0
    if not selects:  # the indexer's projections are not needed
        c = model.config
        width = c.index_n_heads * c.index_head_dim * c.q_lora_rank + c.index_n_heads * c.hidden_size
        skipped = 2 * width * list(c.compress_ratios).count(4)
    return model.bytes_per_token - skipped, rows * KV_ROW + index * INDEX_ROW


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depths", default="512,8192,65536")
    args = parser.parse_args()
    depths = [int(d) for d in args.depths.split(",")]
    with tempfile.TemporaryDirectory() as folder, open_flash(folder) as model:
        session = model.session()
        layers = model.config.n_layers
        summary = [
            "| depth | dispatches | a layer | barriers | read | ideal | ratio |",
            "|---|---|---|---|---|---|---|",
        ]
        tables = []
        for depth in sorted(depths):
            session.prefill([5] * depth)
            session.decode(5)
            records = trace(model)
            weights, rows = ideal_bytes(model, depth)
            n_bytes = sum(n for *_, n in records)
            summary.append(
                f"| {depth:,} | {len(records)} | {len(records) / layers:.1f} | {sum(b for _, b, _ in records)} "
                f"| {n_bytes / 1e9:.3f} GB | {(weights + rows) / 1e9:.3f} GB | {n_bytes / (weights + rows):.3f} |"
            )
            names = parts(records)
            counts, read = Counter(names), defaultdict(int)
            for name, (_, _, n) in zip(names, records, strict=True):
                read[name] += n
            lines = [f"Depth {depth:,}:", "", "| dispatch | times | bytes read |", "|---|---|---|"]
            lines += [f"| {k} | {n} | {read[k] / 1e6:,.1f} MB |" for k, n in counts.items()]
            tables.append("\n".join(lines))
        print("\n".join(summary), *tables, sep="\n\n")


if __name__ == "__main__":
    main()
