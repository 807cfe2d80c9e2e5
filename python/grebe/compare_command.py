"""The command ``grebe compare``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .command_files import check_writable, read_text
from .errors import GrebeError, InvalidArgumentError
from .progress import ProgressBar
from .report import columns, printable, size

if TYPE_CHECKING:
    import argparse

    from .compare import Comparison
    from .model import Model

__all__ = ["add_parser", "run"]


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    positive: Callable[[str], int],
) -> None:
    """Adds ``compare``."""
    parser = subparsers.add_parser(
        "compare",
        help="how far one file is from another: perplexity, KL, top-1, error by layer",
        description="Runs two models over a text and says how far the second is from the first. "
        "With --save-reference one model's logits of a hundred cases are kept, with --against "
        "another one is held to them.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="two models, then texts; one model with --save-reference or --against; - is stdin",
    )
    parser.add_argument("--ctx", type=positive, default=2048, metavar="N", help="default: 2048")
    parser.add_argument("--tokens", type=positive, metavar="N", help="of text (default: all)")
    parser.add_argument(
        "--special", action="store_true", help="markers in the texts are special tokens"
    )
    parser.add_argument("--no-layers", action="store_true", help="leave hidden states out")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw a picture")
    parser.add_argument("--save-reference", type=Path, metavar="FILE.npz")
    parser.add_argument("--against", type=Path, metavar="FILE.npz")
    parser.add_argument(
        "--cases", type=positive, metavar="N", help="of --save-reference (default: 100)"
    )
    parser.add_argument(
        "--max-kl", type=float, metavar="NATS", help="fail when the mean KL is larger"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="default: all cores")
    parser.add_argument("--backend", choices=("auto", "cpu", "metal"), default="cpu")
    parser.add_argument("--kernels", choices=("fast", "exact"), default="fast")
    parser.add_argument("--kv-rounding", choices=("official", "off"), default="official")
    parser.add_argument("--json", action="store_true")


def _load(args: argparse.Namespace, path: str, observe: str) -> Model:
    from .quantize.collect import load_observed

    return load_observed(
        path,
        observe,
        n_threads=args.threads,
        kernels=args.kernels,
        kv_rounding=args.kv_rounding,
        backend=args.backend,
    )


def run(args: argparse.Namespace) -> None:
    """Compares, saves or scores, and reports."""
    if args.save_reference is not None and args.against is not None:
        raise InvalidArgumentError("--save-reference and --against are two runs, not one")
    single = args.save_reference is not None or args.against is not None
    if single and args.plot is not None:
        raise InvalidArgumentError("--plot needs two models, side by side")
    if args.cases is not None and args.save_reference is None:
        raise InvalidArgumentError("--cases is of --save-reference")
    n_models = 1 if single else 2
    models, texts = args.files[:n_models], args.files[n_models:]
    if args.against is not None and texts:
        raise InvalidArgumentError("--against takes one model: the cases have their texts")
    if args.against is None and not texts:
        raise InvalidArgumentError(
            f"{'a model' if single else 'two models'} and a text are expected"
        )
    check_writable(args.plot)
    check_writable(args.save_reference)
    if args.save_reference is not None:
        _save(args, models[0], texts)
    elif args.against is not None:
        _score(args, models[0])
    else:
        _compare(args, models, texts)


def _save(args: argparse.Namespace, path: str, texts: list[str]) -> None:
    from .compare_reference import N_CASES, cases_of, save_reference

    contents = [read_text(t) for t in texts]
    with _load(args, path, "") as model, ProgressBar("cases", unit="") as bar:
        longest = min(args.ctx, 512)
        cases = cases_of(model, contents, args.cases or N_CASES, longest, args.special)
        save_reference(model, cases, args.save_reference, bar)
    print(f"{printable(str(args.save_reference))}: {len(cases)} cases of {printable(path)}")


def _limit(args: argparse.Namespace, kl: float) -> None:
    if args.max_kl is not None and not kl <= args.max_kl:
        raise GrebeError(f"mean KL is {kl:.6f}; at most {args.max_kl} was asked for")


def _score(args: argparse.Namespace, path: str) -> None:
    from .compare_reference import score

    with _load(args, path, "") as model, ProgressBar("cases", unit="") as bar:
        found = score(model, args.against, bar)
    if args.json:
        print(json.dumps(found.to_dict()))
    else:
        print(
            f"{found.passed} of {found.n_cases} cases with the same choice; KL {found.kl_mean:.6f} "
            f"nats, at most {found.kl_max:.6f} (case {found.worst}); largest change of a likely "
            f"log probability {found.max_difference:.4f}; the reference is of "
            f"{'the same' if found.same_weights else 'other'} weights"
        )
    _limit(args, found.kl_mean)


def _compare(args: argparse.Namespace, paths: list[str], texts: list[str]) -> None:
    from .compare import compare

    layers = not args.no_layers
    observe = "hidden" if layers else ""
    contents = [read_text(t) for t in texts]
    with (
        _load(args, paths[0], observe) as a,
        _load(args, paths[1], observe) as b,
        ProgressBar("comparing") as bar,
    ):
        found = compare(
            a,
            b,
            contents,
            n_ctx=args.ctx,
            max_tokens=args.tokens,
            layers=layers,
            special=args.special,
            on_progress=bar,
        )
    if args.json:
        values = {"a": paths[0], "b": paths[1], "n_ctx": args.ctx, **asdict(found)}
        print(json.dumps(values))
    else:
        _report(paths, found)
    if args.plot is not None:
        _plot(args.plot, f"{Path(paths[1]).name} against {Path(paths[0]).name}", found)
    _limit(args, found.kl_mean)


def _plot(path: Path, title: str, found: Comparison) -> None:
    from .compare_plot import svg

    path.write_text(svg(title, found.layers, found.quantiles), encoding="utf-8")


def _report(paths: list[str], c: Comparison) -> None:
    rows = [
        ("", "perplexity", "right", "bytes a token"),
        (paths[0], f"{c.perplexity_a:.4f}", f"{c.top1_a:.2%}", size(c.bytes_per_token_a)),
        (paths[1], f"{c.perplexity_b:.4f}", f"{c.top1_b:.2%}", size(c.bytes_per_token_b)),
    ]
    print(columns(rows, right="lrrr", indent=""))
    difference = c.nats_b - c.nats_a
    facts = [
        ("nats a token", f"{difference:+.5f} +- {c.nats_error:.5f} over {c.n_tokens} tokens"),
        ("KL", f"mean {c.kl_mean:.6f} +- {c.kl_error:.6f}, median {c.kl_median:.6f}"),
        ("", f"99 % {c.kl_p99:.5f}, largest {c.kl_max:.4f}"),
        ("same choice", f"{c.top1:.2%}"),
        ("right token's p", f"changes by {c.p_rms:.3%} (root mean square)"),
    ]
    print(columns(facts))
    if c.layers:
        widest = max(c.layers) or 1
        print("error of the streams after each layer")
        bars = [
            (i, f"{e:.3e}", "#" * max(1, round(40 * e / widest)) if e else "")
            for i, e in enumerate(c.layers)
        ]
        print(columns(bars, right="rr"))
