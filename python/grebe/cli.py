"""The command ``grebe``: run, chat, serve, agents, inspect, bench and the others.

Exit status: 0 done; 1 something failed; 2 wrong usage, a prompt that does not fit, a file that is
damaged or not supported, a backend that is not there; 130 interrupted by Ctrl-C. Errors are one
line on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from . import (
    agents_commands,
    cache_commands,
    chat_commands,
    commands,
    compare_command,
    serve_commands,
)
from .errors import (
    BackendUnavailableError,
    ContextOverflowError,
    FormatError,
    GrebeError,
    InvalidArgumentError,
    StorageError,
    UnsupportedModelError,
)
from .quantize import command as quantize_command
from .quantize import imatrix_command
from .report import printable

__all__ = ["main", "make_parser"]

# What the person who typed the command can mend.
USAGE_ERRORS = (
    InvalidArgumentError,
    ContextOverflowError,
    FormatError,
    UnsupportedModelError,
    BackendUnavailableError,
    StorageError,
)


def make_parser() -> argparse.ArgumentParser:
    """The argument parser of the command."""
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="grebe", description="Runs DeepSeek V4 Flash from a GGUF file."
    )
    parser.add_argument("--version", action="version", version=f"grebe {__version__}")
    commands_ = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands_)
    chat_commands.add_parser(commands_, _add_model)
    serve_commands.add_parser(commands_, _add_model)
    agents_commands.add_parser(commands_)
    _add_inspect(commands_)
    _add_bench(commands_)
    _add_tokenize(commands_)
    _add_perplexity(commands_)
    _add_doctor(commands_)
    cache_commands.add_parser(commands_)
    quantize_command.add_parser(commands_)
    imatrix_command.add_parser(commands_, _positive)
    compare_command.add_parser(commands_, _positive)
    return parser


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _depths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list like 0,2048,8192") from None


def _add_model(parser: argparse.ArgumentParser, *, runs: bool = True) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m",
        "--model",
        metavar="FILE",
        default=os.environ.get("GREBE_MODEL") or None,
        help="GGUF file (default: $GREBE_MODEL, else the small model inside the package)",
    )
    if runs:
        group.add_argument(
            "--backend",
            choices=("auto", "cpu", "metal"),
            default="auto",
            help="default: metal on a Mac with Apple silicon, else cpu",
        )
        group.add_argument(
            "--threads", type=_positive, metavar="N", help="default: all physical cores"
        )
        group.add_argument(
            "--kv-rounding",
            choices=("official", "off"),
            default="official",
            help="how KV rows are stored (default: official, as the model was trained)",
        )
        group.add_argument(
            "--kernels",
            choices=("fast", "exact"),
            default="fast",
            help="int8 or f32 activations for quantized weights (default: fast)",
        )


def _add_run(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "run", help="continue a prompt", description="Continues a prompt and streams the text."
    )
    parser.set_defaults(run=commands.run)
    parser.add_argument("prompt", nargs="?", help="the text to continue (default: stdin)")
    parser.add_argument(
        "-n",
        "--max-tokens",
        type=_positive,
        default=256,
        metavar="N",
        help="at most so many new tokens (default: 256)",
    )
    parser.add_argument("--ctx", type=_positive, metavar="N", help="size of the context")
    parser.add_argument(
        "--session",
        metavar="NAME",
        help="go on from where the last call with this name ended, and save; without a prompt the "
        "text is continued. A NAME with / or ending in .grebe is a file",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="keep what is computed in this directory, and go on from what is there; see grebe "
        "cache",
    )
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end at this text; may be repeated"
    )
    parser.add_argument(
        "--no-echo", action="store_true", help="print the continuation without the prompt"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object per token and a last one with totals"
    )
    _add_model(parser)
    group = parser.add_argument_group("sampling")
    group.add_argument("--greedy", action="store_true", help="always the most likely token")
    group.add_argument("--temperature", type=float, default=0.7, metavar="X", help="default: 0.7")
    group.add_argument("--top-k", type=int, default=0, metavar="N", help="0: off (default)")
    group.add_argument("--top-p", type=float, default=0.95, metavar="X", help="default: 0.95")
    group.add_argument("--min-p", type=float, default=0.0, metavar="X", help="0: off (default)")
    group.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X")
    group.add_argument("--presence-penalty", type=float, default=0.0, metavar="X")
    group.add_argument("--frequency-penalty", type=float, default=0.0, metavar="X")
    group.add_argument("--seed", type=int, metavar="N", help="default: a new one each time")
    group.add_argument(
        "--top-logprobs", type=int, default=0, metavar="N", help="alternatives listed by --json"
    )


def _add_inspect(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "inspect",
        help="what a file holds and needs",
        description="Shows what a GGUF file holds, what memory it takes and what can run it here.",
    )
    parser.set_defaults(run=commands.inspect)
    parser.add_argument("file", nargs="?", help="GGUF file (default: as --model)")
    parser.add_argument("--ctx", type=_positive, default=8192, metavar="N", help="default: 8192")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--json", action="store_true")
    _add_model(parser, runs=False)


def _add_bench(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="prefill and decode speed",
        description="Measures prefill and decode speed as the context grows, and the share of the "
        "machine's read bandwidth that decode uses.",
    )
    parser.set_defaults(run=commands.bench)
    parser.add_argument(
        "--depths",
        type=_depths,
        default=[0, 2048, 8192],
        metavar="N,N,...",
        help="tokens of context at which to measure (default: 0,2048,8192)",
    )
    parser.add_argument("--prefill", type=_positive, default=512, metavar="N", help="default: 512")
    parser.add_argument("--decode", type=_positive, default=32, metavar="N", help="default: 32")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.add_argument("--json", action="store_const", const="json", dest="format")
    parser.add_argument("--plot", metavar="PNG", help="draw the result; needs grebe[plot]")
    _add_model(parser)


def _add_tokenize(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "tokenize", help="token ids of a text", description="Shows the tokens of a text."
    )
    parser.set_defaults(run=commands.tokenize)
    parser.add_argument("text", nargs="?", help="default: stdin")
    parser.add_argument("--ids", action="store_true", help="ids only, on one line")
    parser.add_argument(
        "--allow-special", action="store_true", help="read special tokens in the text as such"
    )
    parser.add_argument("--json", action="store_true")
    _add_model(parser, runs=False)


def _add_perplexity(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "perplexity",
        help="how well a text is predicted",
        description="Mean negative log likelihood of a text, in windows.",
    )
    parser.set_defaults(run=commands.perplexity)
    parser.add_argument("file", help="text file, UTF-8; - is stdin")
    parser.add_argument("--ctx", type=_positive, default=2048, metavar="N", help="default: 2048")
    parser.add_argument(
        "--stride", type=_positive, metavar="N", help="default: windows do not overlap"
    )
    parser.add_argument("--json", action="store_true")
    _add_model(parser)


def _add_doctor(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="whether the ops are right on this machine",
        description="Runs single ops of a backend on random numbers and compares them with plain "
        "code on the CPU. The output says what a report of a failure should.",
    )
    parser.set_defaults(run=commands.doctor)
    parser.add_argument(
        "--backend", choices=("auto", "cpu", "metal"), default="auto", help="default: as run"
    )
    parser.add_argument(
        "--op", action="append", metavar="NAME", help="only this op; may be repeated"
    )
    parser.add_argument("--json", action="store_true")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    if sys.stderr is None:  # closed by the caller, as with 2>&-
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for the whole process
    if sys.stdout is None:
        print("grebe: stdout is closed", file=sys.stderr)
        return 1
    try:
        return _run(make_parser().parse_args(argv))
    except KeyboardInterrupt:
        return 130


def _run(args: argparse.Namespace) -> int:
    # A model may write any character; a terminal that cannot show one should not end the run.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone, as `| head` does. Python would complain again when it flushes at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (GrebeError, OSError, UnicodeDecodeError) as error:
        print(f"grebe: {printable(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, (*USAGE_ERRORS, FileNotFoundError, UnicodeDecodeError)) else 1
    return 0
