"""The one command: corpus files -> trained demo model, checkpoint, GGUF, reference tokens, picture.

    python build_model.py --data DIR --out OUT

DIR holds books, books2, pycode (`.jsonl` or `.jsonl.xz`), eval/ and tok8k.json; build_corpus.py and
make_tokenizer.py make them. Needs a CUDA GPU with 48 GB, PyTorch 2.11, tokenizers, safetensors, matplotlib.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--seconds", type=int, default=1200, help="of training at most")
    p.add_argument("--no-compile", action="store_true", help="for runs of a few steps on a CPU")
    p.add_argument("--shards", type=int, default=72)
    a, train_options = p.parse_known_args()  # the rest goes to train.py
    cache, hf = a.out / "cache", a.out / "hf"
    a.out.mkdir(parents=True, exist_ok=True)

    def command(script: str, *args: object) -> list[str]:
        return [sys.executable, str(HERE / script), *map(str, args)]

    def run(script: str, *args: object) -> None:
        subprocess.run(command(script, *args), check=True)

    inputs = ("--data", a.data, "--tokenizer", a.data / "tok8k.json", "--cache", cache)
    shared = (*inputs, "--seed", a.seed, "--shards", a.shards)
    spare = max(1, (os.cpu_count() or 2) - 3)
    makes_shards = subprocess.Popen(command("make_shards.py", *shared, "--jobs", spare))
    try:
        options = ("--eval", a.data / "eval", "--out", a.out, "--seconds", a.seconds)
        compiled = () if a.no_compile else ("--compile",)
        run("train.py", *shared, *options, *compiled, *train_options)
    finally:
        makes_shards.terminate()
        makes_shards.wait()
    run(
        "export_gguf.py",
        "--hf",
        hf,
        "--gguf",
        a.out / "grebe-demo.gguf",
        "--mtp",
        a.out / "grebe-demo-mtp.gguf",
    )
    run("reference.py", "--hf", hf, "--out", a.out / "greedy.json")
    run("plot_log.py", a.out / "train_log.jsonl", a.out / "loss.png")


if __name__ == "__main__":
    main()
