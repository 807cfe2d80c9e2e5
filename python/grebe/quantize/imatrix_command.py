"""The command ``grebe imatrix``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_files import check_writable, read_text
from ..errors import InvalidArgumentError
from ..progress import ProgressBar
from ..report import columns, printable

if TYPE_CHECKING:
    import argparse

    from .imatrix import Imatrix

__all__ = ["add_parser", "run"]

SAVE_SECONDS = 300.0  # between two states on disk of a long run
SHOWN = 8


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    positive: Callable[[str], int],
) -> None:
    """Adds ``imatrix``."""
    parser = subparsers.add_parser(
        "imatrix",
        help="measure which columns of the weights matter, for grebe quantize",
        description="Runs a model over texts and sums up the squares of what each weight is "
        "multiplied with, for every expert apart. Give the best model that the machine can run: "
        "a native or q8 file.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("model", metavar="MODEL.gguf", nargs="?")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="text file, UTF-8; - is stdin")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("imatrix.gguf"),
        metavar="FILE",
        help="GGUF, or the older format when it ends in .dat (default: imatrix.gguf)",
    )
    parser.add_argument(
        "--merge",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="add what another run found (GGUF or .dat); may be repeated, and works without texts",
    )
    parser.add_argument(
        "--ctx", type=positive, default=2048, metavar="N", help="tokens of a window (2048)"
    )
    parser.add_argument("--chunks", type=positive, metavar="N", help="windows (default: all)")
    parser.add_argument(
        "--special", action="store_true", help="markers in the texts are special tokens"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="default: all cores")
    parser.add_argument("--kernels", choices=("fast", "exact"), default="fast")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> None:
    """Collects, merges, writes and reports."""
    from .imatrix import Imatrix

    if not args.texts and (args.model is not None or not args.merge):
        raise InvalidArgumentError("MODEL.gguf and a TEXT, or --merge FILE alone, are expected")
    check_writable(args.out)
    start = time.monotonic()
    earlier = Imatrix()
    for file in args.merge:
        earlier.merge(Imatrix.read(file))
    result = _collect(args, earlier) if args.texts else earlier
    result.write(args.out)
    blind = {
        name: int((s.counts == 0).sum())
        for name, s in sorted(result.entries.items())
        if (s.counts == 0).any()
    }
    if args.json:
        report = {
            "path": str(args.out),
            "entries": len(result.entries),
            "chunks": result.n_chunks,
            "chunk_size": result.chunk_size,
            "datasets": result.datasets,
            "experts_without_data": sum(blind.values()),
            "seconds": round(time.monotonic() - start, 3),
        }
        print(json.dumps(report))
        return
    seconds = time.monotonic() - start
    print(
        f"{printable(str(args.out))}: {len(result.entries)} weights, {result.n_chunks} windows of "
        f"{result.chunk_size} tokens, {seconds:.1f} s"
    )
    if blind:
        print("experts that saw nothing and will count all columns alike:")
        print(columns(list(blind.items())[:SHOWN], right="lr"))
        if len(blind) > SHOWN:
            print(f"  ... and in {len(blind) - SHOWN} more")


def _collect(args: argparse.Namespace, earlier: Imatrix) -> Imatrix:
    from .collect import collect, load_observed
    from .imatrix import Imatrix

    texts = [(Path(name).name, read_text(name)) for name in args.texts]
    model = load_observed(args.model, "inputs", n_threads=args.threads, kernels=args.kernels)
    result = Imatrix()
    with model, ProgressBar("imatrix") as bar:
        saved = time.monotonic()
        for result in collect(
            model,
            texts,
            n_ctx=args.ctx,
            max_chunks=args.chunks,
            special=args.special,
            on_progress=bar,
        ):
            if time.monotonic() - saved > SAVE_SECONDS:
                _with(earlier, result).write(args.out)
                saved = time.monotonic()
    return _with(earlier, result)


def _with(earlier: Imatrix, new: Imatrix) -> Imatrix:
    from .imatrix import Imatrix

    total = Imatrix()
    for part in (new, earlier):
        if part.entries:
            total.merge(part)
    return total
