"""The command ``grebe quantize``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..progress import ProgressBar
from ..report import columns, printable, size

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "run"]

LINE_SECONDS = 30.0  # between lines of progress where there is no terminal
SHOWN_NAMES = 5
RECIPES = ("q2", "q2-q4", "q2-fast", "q4", "q8", "mxfp4", "native", "bf16", "f32")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``quantize``."""
    parser = subparsers.add_parser(
        "quantize",
        help="make a GGUF file of DeepSeek's checkpoint",
        description="Makes a GGUF file of a checkpoint folder (config.json, tokenizer.json, "
        "safetensors). A run that was stopped goes on where it was when it is started again; the "
        "file gets its name when it is whole, and OUT.json lists the hash of every tensor.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("folder", metavar="HF_DIR")
    parser.add_argument("out", metavar="OUT.gguf")
    parser.add_argument(
        "--recipe", choices=RECIPES, default="q2", help="types of the tensors (default: q2)"
    )
    parser.add_argument(
        "--type",
        action="append",
        default=[],
        metavar="PATTERN=TYPE",
        help="type of the tensors whose GGUF name matches, such as attn_q_b=q6_k or "
        "blk.4?.ffn_down_exps=q4_k; may be repeated, the last that matches decides",
    )
    parser.add_argument(
        "--imatrix",
        type=Path,
        metavar="FILE",
        help="importance of the columns, from grebe imatrix or llama.cpp (GGUF or .dat)",
    )
    parser.add_argument(
        "--drafts",
        choices=("none", "file", "sidecar"),
        default="none",
        help="draft layers: left out (default), in the file, or they alone",
    )
    parser.add_argument(
        "--no-tokenizer", action="store_true", help="for folders without tokenizer.json"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: all cores")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.gguf")
    parser.add_argument("--json", action="store_true")


class _Progress:
    """The bar on a terminal, else a line now and then."""

    def __init__(self, label: str) -> None:
        self._bar = ProgressBar(label, unit="MB")
        self._start = self._last = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        self._bar(done // 1_000_000, total // 1_000_000)
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if sys.stderr.isatty() or now - self._last < LINE_SECONDS:
            return
        self._last = now
        rate = (done - self._first) / (now - self._start)
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 else ""
        print(f"{size(done)} of {size(total)}, {size(rate)}/s{left}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()


def run(args: argparse.Namespace) -> None:
    """Converts and reports."""
    from .convert import Options, quantize
    from .recipes import parse_rule

    options = Options(
        recipe=args.recipe,
        rules=tuple(parse_rule(text) for text in args.type),
        imatrix=args.imatrix,
        drafts=args.drafts,
        tokenizer=not args.no_tokenizer,
        n_threads=args.threads,
        overwrite=args.overwrite,
    )
    progress = _Progress("quantizing")
    try:
        report = quantize(args.folder, args.out, options, on_progress=progress)
    finally:
        progress.close()
    if args.json:
        print(json.dumps({**vars(report), "path": str(report.path)}))
        return
    rows = [(t, n, size(b)) for t, (n, b) in sorted(report.census.items())]
    print(f"{printable(str(report.path))}: {size(report.n_bytes)} in {report.seconds:.1f} s")
    if report.resumed_bytes:
        print(f"{size(report.resumed_bytes)} of it by an earlier run")
    print(columns(rows, right="lrr"))
    print(f"sha256 {report.sha256}")
    for names, text in (
        (report.fallbacks, "rows that do not divide into blocks"),
        (report.unimportant if args.imatrix else [], "matrices without importance"),
        (report.ignored, "tensors of the checkpoint left out"),
    ):
        if names:
            more = ", ..." if len(names) > SHOWN_NAMES else ""
            print(f"{len(names)} {text}: {printable(', '.join(names[:SHOWN_NAMES]))}{more}")
