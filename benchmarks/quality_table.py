"""What each recipe costs in quality, on a trained model: one command makes the files, measures them and prints a table.

    python benchmarks/quality_table.py HF_DIR --calibrate books.jsonl.xz --text held-out.jsonl [--work DIR] [--tokens 12000]

HF_DIR is a checkpoint in DeepSeek's layout. Every file is compared with the native one, which is the checkpoint exactly. Texts are
plain files, or .jsonl(.xz) with the text in "t" or "text": evenly spread records, clipped to 4,000 characters. Those of --calibrate
make the importance matrix and should not be those of --text. The table is Markdown; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import lzma
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from grebe.compare import compare
from grebe.quantize.collect import collect, load_observed
from grebe.quantize.convert import Options, quantize

CLIP = 4000  # characters of a record
# Name, recipe (q2-q4 is q4 where a model has six layers), whether the importance matrix is used.
ROWS = (
    ("bf16", "bf16", False), ("q8", "q8", False), ("mxfp4", "mxfp4", False), ("q4", "q4", False), ("q4 + imatrix", "q4", True),
    ("q2", "q2", False), ("q2 + imatrix", "q2", True), ("q2-fast", "q2-fast", False),
    ("q2-fast + imatrix", "q2-fast", True),
)  # fmt: skip


def texts_of(paths: list[Path], characters: int) -> list[str]:
    """At most so many characters, the same of each file."""
    share, out = characters // len(paths), []
    for path in paths:
        data = path.read_bytes()
        raw = (lzma.decompress(data) if path.suffix == ".xz" else data).decode()
        if ".jsonl" not in path.name:
            out.append(raw[:share])
            continue
        records = [json.loads(line) for line in raw.splitlines()]
        records = [(r.get("t") or r.get("text") or "")[:CLIP] for r in records]
        step = max(1, sum(map(len, records)) // share)
        out += records[::step]
    return [t for t in out if t]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--text", type=Path, nargs="+", required=True)
    p.add_argument("--calibrate", type=Path, nargs="+", required=True)
    p.add_argument(
        "--work", type=Path, help="where the files go and stay (default: a temporary folder)"
    )
    p.add_argument("--tokens", type=int, default=12_000, help="of the texts")
    p.add_argument("--calibration-tokens", type=int, default=60_000)
    p.add_argument("--ctx", type=int, default=1024)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--kernels", default="fast")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measure(a, a.work or Path(scratch))


def make(a: argparse.Namespace, path: Path, recipe: str, imatrix: Path | None) -> None:
    tokenizer = (a.checkpoint / "tokenizer.json").exists()
    options = Options(
        recipe=recipe, imatrix=imatrix, tokenizer=tokenizer, n_threads=a.threads, overwrite=True
    )
    quantize(a.checkpoint, path, options)


def measure(a: argparse.Namespace, work: Path) -> None:
    work.mkdir(exist_ok=True, parents=True)
    native, imatrix = work / "native.gguf", work / "imatrix.gguf"
    make(a, native, "native", None)
    start = time.monotonic()
    load = {"n_threads": a.threads, "kernels": a.kernels}
    with load_observed(native, "inputs", **load) as model:
        named = [
            (f"text {i}", t) for i, t in enumerate(texts_of(a.calibrate, 4 * a.calibration_tokens))
        ]
        *_, found = collect(model, named, n_ctx=a.ctx, special=True)
        found.datasets = [path.name for path in a.calibrate]
        found.write(imatrix)
    print(f"imatrix: {found.n_chunks} windows, {time.monotonic() - start:.0f} s\n")
    texts = texts_of(a.text, 5 * a.tokens)
    rows = []
    print(
        "| file | MB | bytes a token, M | perplexity | nats a token, + | KL mean | KL 99 % | same choice | last layer |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, recipe, weighted in ROWS:
        path = work / f"{name.replace(' ', '')}.gguf"
        make(a, path, recipe, imatrix if weighted else None)
        with (
            load_observed(native, "hidden", **load) as x,
            load_observed(path, "hidden", **load) as y,
        ):
            c = compare(x, y, texts, n_ctx=a.ctx, max_tokens=a.tokens, layers=True, special=True)
        if not rows:
            print(row("native", native, c.bytes_per_token_a, c.perplexity_a, 0, 0, 0, 0, 1, 0))
        print(
            row(
                name,
                path,
                c.bytes_per_token_b,
                c.perplexity_b,
                c.nats_b - c.nats_a,
                c.nats_error,
                c.kl_mean,
                c.kl_p99,
                c.top1,
                c.layers[-1],
            ),
            flush=True,
        )
        rows.append({"name": name, "file_bytes": path.stat().st_size, **asdict(c)})
    print(
        json.dumps(
            {"tokens": rows[0]["n_tokens"], "ctx": a.ctx, "kernels": a.kernels, "rows": rows}
        )
    )


def row(
    name: str,
    path: Path,
    n_bytes: int,
    ppl: float,
    nats: float,
    error: float,
    kl: float,
    p99: float,
    top1: float,
    layer: float,
) -> str:
    return (
        f"| {name} | {path.stat().st_size / 1e6:.1f} | {n_bytes / 1e6:.2f} | {ppl:.3f} | {nats:.4f} ± {error:.4f} | "
        f"{kl:.5f} | {p99:.4f} | {top1:.2%} | {layer:.4f} |"
    )


if __name__ == "__main__":
    main()
