"""Matrix products by type: share of the read bandwidth for one row of x, operations a second for many.

    python benchmarks/bench_ops.py [--threads 2] [--isa NAME] [--types Q8_0,IQ2_XXS] [--seconds 1]

One row: the weights of a layer-sized matrix are streamed from memory (they are larger than any cache), so GB/s over the measured
bandwidth is the share of the physical limit. 512 rows: 2 x rows x weights per second. The roof is measured again before every
row, since a shared machine drifts. Medians; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics

import grebe

# type: bytes per weight
TYPES = {
    "Q8_0": 34 / 32, "IQ2_XXS": 66 / 256, "Q2_K": 84 / 256, "MXFP4": 17 / 32, "Q4_K": 144 / 256, "Q6_K": 210 / 256,
    "Q5_K": 176 / 256, "Q3_K": 110 / 256, "IQ3_XXS": 98 / 256, "IQ2_S": 82 / 256, "F16": 2.0, "BF16": 2.0, "F32": 4.0,
}  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--threads", type=int, default=grebe._engine.usable_cores())
    p.add_argument("--isa", default="")
    p.add_argument("--types", default=",".join(TYPES))
    p.add_argument("--seconds", type=float, default=1.0)
    p.add_argument("--megabytes", type=int, default=400, help="size of the streamed matrix")
    a = p.parse_args()
    rows = []
    print(f"{a.threads} threads, {a.isa or grebe._engine.available_isas()[-1]}")
    print("type      matvec GB/s  roof GB/s  share   512 rows GOP/s")
    for name in a.types.split(","):
        n_out = max(64, int(a.megabytes * 1e6 / TYPES[name] / 4096) // 64 * 64)
        roofs, times = [], []
        for _ in range(3):  # interleaved: roof, kernel, roof, kernel
            roofs.append(grebe._engine.measure_read_bandwidth(a.threads, a.seconds / 3) / 1e9)
            times += grebe._engine.bench_matmul(
                name, 4096, n_out, 1, a.threads, a.seconds / 3, a.isa
            )
        gbs = n_out * 4096 * TYPES[name] / statistics.median(times) / 1e9
        roof = statistics.median(roofs)
        many = grebe._engine.bench_matmul(name, 4096, 2048, 512, a.threads, a.seconds, a.isa)
        gops = 2 * 512 * 2048 * 4096 / statistics.median(many) / 1e9
        rows.append(
            {
                "type": name,
                "matvec_gb_s": gbs,
                "roof_gb_s": roof,
                "share": gbs / roof,
                "gop_s_512": gops,
            }
        )
        print(f"{name:8}  {gbs:11.1f}  {roof:9.1f}  {gbs / roof:5.0%}  {gops:15.0f}", flush=True)
    print(json.dumps({"benchmark": "bench_ops", "threads": a.threads, "isa": a.isa, "rows": rows}))


if __name__ == "__main__":
    main()
