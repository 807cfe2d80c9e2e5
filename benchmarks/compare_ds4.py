"""Our logits against ds4's on the synthetic Flash file (tests/vectors/ds4).

    python benchmarks/compare_ds4.py flash-a1.gguf [--max-tokens 600] [--kernels fast] [--threads N]

For every recorded run: prefill the prompt, follow ds4's greedy choices, compare the top 64. Limits: at least 55 of 64 ids in
common and an RMS difference of the common logits of at most 0.25. Exits with 1 when a step misses a limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import grebe
import numpy as np

VECTORS = Path(__file__).parent.parent / "tests" / "vectors" / "ds4" / "a1-logits.json"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model")
    p.add_argument("--max-tokens", type=int, default=600, help="longest prompt to run")
    p.add_argument("--kernels", default="fast")
    p.add_argument("--threads", type=int)
    a = p.parse_args()
    data = json.loads(VECTORS.read_text())
    started = time.perf_counter()
    model = grebe.Model.load(a.model, kernels=a.kernels, n_threads=a.threads)
    print(f"loaded in {time.perf_counter() - started:.2f} s: {model!r}")
    missed = 0
    print("backend  prompt  step  common of 64  rms of common  same argmax")
    for run in data["runs"]:
        n = run["prompt"]
        if n > a.max_tokens:
            continue
        offset = data["offsets"][str(n)]
        prompt = [0, 128803, *data["stream"][offset : offset + n - 4], 128804, 128822]
        with model.session() as s:
            s.prefill(prompt)
            for i, step in enumerate(run["steps"]):
                logits = s.logits
                top = set(np.argsort(-logits, kind="stable")[:64].tolist())
                common = [k for k, t in enumerate(step["ids"]) if t in top]
                theirs = np.array([step["logits"][k] for k in common])
                ours = logits[[step["ids"][k] for k in common]]
                rms = float(np.sqrt(((theirs - ours) ** 2).mean()))
                ok = len(common) >= 55 and rms <= 0.25
                missed += not ok
                same = int(logits.argmax()) == step["ids"][0]
                print(
                    f"{run['backend']:7}  {n:6}  {i:4}  {len(common):12}  {rms:13.3f}  {same!s:5}"
                    f"{'' if ok else '  MISSED'}",
                    flush=True,
                )
                s.decode(step["chosen"])
    print(json.dumps({"benchmark": "compare_ds4", "missed": missed, "kernels": a.kernels}))
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
