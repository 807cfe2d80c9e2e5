"""The one command: sources -> corpus, tokenizer, trained demo model, checkpoint, GGUF, evaluation, picture.

    python build_model.py --data DIR --out OUT

DIR holds books, books2, pycode (`.jsonl` or `.jsonl.xz`), eval/books.jsonl, eval/pycode.jsonl and tok8k.json. With
--books, --stdlib and --v4 (see build_corpus.py and make_tokenizer.py) they are made there first. Needs a CUDA GPU with
48 GB, PyTorch 2.11, tokenizers, safetensors, matplotlib; where grebe is installed, it is compared with the trainer.

A run that --call-seconds or a lost machine stopped goes on with the same command and --resume.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
UNFINISHED = 75  # the exit code of train.py when it stopped before its schedule ended


def command(script: str, *args: object) -> list[str]:
    return [sys.executable, str(HERE / script), *map(str, args)]


def run(script: str, *args: object) -> None:
    subprocess.run(command(script, *args), check=True)


def make_data(a: argparse.Namespace) -> None:
    """The corpus and the tokenizer, where their sources are given."""
    if a.books:
        run("build_corpus.py", "--out", a.data, "--books", a.books, "--stdlib", a.stdlib)
    if a.v4:
        run("make_tokenizer.py", "--v4", a.v4, "--data", a.data, "--out", a.data / "tok8k.json")


def make_held_out(a: argparse.Namespace) -> Path:
    """The held-out set; what is generated in it is made anew, in the form of today's generators."""
    folder = a.out / "eval"
    if not (folder / "graded.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("books", "pycode"):
            shutil.copyfile(a.data / "eval" / f"{part}.jsonl", folder / f"{part}.jsonl")
        run("build_corpus.py", "--out", a.out, "--generated")
    return folder


def train(a: argparse.Namespace, held_out: Path, options: list[str]) -> bool:
    """Whether the schedule came to its end. Generated text is made beside the training."""
    cache = a.out / "cache"
    inputs = ("--data", a.data, "--tokenizer", a.data / "tok8k.json", "--cache", cache)
    shared = (*inputs, "--seed", a.seed, "--shards", a.shards)
    spare = max(1, (os.cpu_count() or 2) - 3)
    makes_shards = subprocess.Popen(command("make_shards.py", *shared, "--jobs", spare))
    try:
        compiled = () if a.no_compile else ("--compile",)
        where = ("--eval", held_out, "--out", a.out, "--seconds", a.seconds)
        code = subprocess.run(command("train.py", *shared, *where, *compiled, *options)).returncode
    finally:
        makes_shards.terminate()
        makes_shards.wait()
    if code not in (0, UNFINISHED):
        raise SystemExit(code)
    return code == 0


def export(a: argparse.Namespace, held_out: Path) -> None:
    """GGUF and sidecar, greedy tokens, picture, and the comparison with grebe."""
    hf, gguf, greedy = a.out / "hf", a.out / "grebe-demo.gguf", a.out / "greedy.json"
    run("export_gguf.py", "--hf", hf, "--gguf", gguf, "--mtp", a.out / "grebe-demo-mtp.gguf")
    run("reference.py", "--hf", hf, "--out", greedy)
    run("plot_log.py", a.out / "train_log.jsonl", a.out / "loss.png")
    if importlib.util.find_spec("grebe"):
        tokenizer = ("--tokenizer", a.data / "tok8k.json")
        run("check_engine.py", "--gguf", gguf, "--greedy", greedy, "--eval", held_out, *tokenizer)
    else:
        print("grebe is not installed: check_engine.py was not run")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--books", type=Path, help="the books' repository: make the corpus first")
    p.add_argument("--stdlib", type=Path, default=Path("/usr/lib/python3.11"))
    p.add_argument("--v4", type=Path, help="DeepSeek's tokenizer.json: make the tokenizer first")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--seconds", type=int, default=1200, help="of training, compiling included")
    p.add_argument("--no-compile", action="store_true", help="for runs of a few steps on a CPU")
    p.add_argument("--shards", type=int, default=72)
    a, train_options = p.parse_known_args()  # the rest goes to train.py
    a.out.mkdir(parents=True, exist_ok=True)
    if "--resume" not in train_options:
        make_data(a)
    held_out = make_held_out(a)
    if train(a, held_out, train_options):
        export(a, held_out)
    else:
        print("stopped before the end; the same command with --resume goes on")


if __name__ == "__main__":
    main()
