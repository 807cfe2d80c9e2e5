"""``python -m tests.metal_emu.compiler``: exec, lint or rewrite; ``-`` reads standard input."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .execute import compile_library
from .lint import lint
from .rewriter import rewrite
from .source import Source
from .tools import CompileError, job_count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.metal_emu.compiler", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    execute = commands.add_parser("exec", help="compile to a library for the runtime")
    execute.add_argument("file")
    execute.add_argument("-o", "--output", type=Path, required=True)
    execute.add_argument("--race", action="store_true", help="check every memory access")
    check = commands.add_parser("lint", help="report what Apple's compiler would refuse")
    check.add_argument("files", nargs="+")
    show = commands.add_parser("rewrite", help="print the rewritten text")
    show.add_argument("file")
    show.add_argument("--mode", choices=["exec", "lint"], default="exec")
    args = parser.parse_args()
    try:
        if args.command == "exec":
            compile_library(Source.read(args.file), args.race, output=args.output)
        elif args.command == "rewrite":
            print(rewrite(Source.read(args.file).preprocess(), args.mode).text)
        else:
            sources = [Source.read(name) for name in args.files]
            with ThreadPoolExecutor(job_count()) as pool:
                findings = [line for lines in pool.map(lint, sources) for line in lines]
            findings = list(dict.fromkeys(findings))  # headers are shared
            print("\n".join(findings), file=sys.stderr, end="\n" if findings else "")
            return 1 if findings else 0
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
