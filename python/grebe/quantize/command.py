"""The command ``grebe quantize``."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..report import columns, printable, size

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "run"]

LINE_SECONDS = 30.0  # between lines of progress where there is no terminal
WINDOW_SECONDS = 60.0  # that the rate is taken over
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


class Progress:
    """How much is done, at what rate and for how long yet, on stderr.

    On a terminal a line that redraws itself, else one now and then. The rate is that of the last
    minute: an earlier run's part is only read, and types differ.

    Example:
        >>> times = iter([0.0, 10.0, 20.0])
        >>> progress = Progress(clock=lambda: next(times))
        >>> progress.line(900_000_000, 2_000_000_000), progress.line(1_000_000_000, 2_000_000_000)
        ('900 MB of 2.00 GB', '1.00 GB of 2.00 GB, 10.0 MB/s, 1:40 left')
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()
        self._live = sys.stderr.isatty()
        self._next = clock() + (1.0 if self._live else LINE_SECONDS)
        self._drawn = False

    def line(self, done: int, total: int) -> str:
        """The text; notes the time."""
        now = self._clock()
        self._seen.append((now, done))
        while self._seen[0][0] < now - WINDOW_SECONDS:
            self._seen.popleft()
        (then, before), text = self._seen[0], f"{size(done)} of {size(total)}"
        if now <= then or done <= before:
            return text
        rate = (done - before) / (now - then)
        minutes, seconds = divmod(round((total - done) / rate), 60)
        return f"{text}, {size(rate)}/s, {minutes}:{seconds:02} left"

    def __call__(self, done: int, total: int) -> None:
        """Shows that ``done`` of ``total`` bytes are done."""
        text = self.line(done, total)
        if self._seen[-1][0] < self._next:
            return
        self._next = self._seen[-1][0] + (0.2 if self._live else LINE_SECONDS)
        self._drawn = self._live
        print(
            f"\r{text}\x1b[K" if self._live else text,
            end="" if self._live else "\n",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Clears the line."""
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


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
    progress = Progress()
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
