"""What the subcommands do: each takes the parsed arguments and prints; errors are main's."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Sampling
from .errors import GrebeError, InvalidArgumentError
from .progress import ProgressBar

if TYPE_CHECKING:
    import argparse

    from .generate import Generation
    from .model import Model

__all__ = ["bench", "doctor", "inspect", "perplexity", "run", "tokenize"]


def _load(args: argparse.Namespace) -> Model:
    from .model import Model

    return Model.load(
        args.model,
        backend=args.backend,
        n_threads=args.threads,
        kv_rounding=args.kv_rounding,
        kernels=args.kernels,
    )


def _argument(name: str, text: str) -> str:
    """A text of the command line, which must be UTF-8: Python hides other bytes in surrogates."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        raise InvalidArgumentError(f"{name} is {text!a}, which is not UTF-8") from None


def _read_text(name: str, text: str | None) -> str:
    """The argument, or stdin. Bytes that are no UTF-8 are a clear error, not a guess."""
    if text is not None:
        return _argument(name, text)
    if sys.stdin is None:
        raise InvalidArgumentError(f"stdin is closed; give the {name} as an argument")
    if sys.stdin.isatty():
        print("reading stdin, end with Ctrl-D", file=sys.stderr)
    return sys.stdin.buffer.read().decode("utf-8")


def _sampling(args: argparse.Namespace) -> Sampling:
    if not args.temperature >= 0:  # --greedy would hide it
        raise InvalidArgumentError(f"temperature is {args.temperature}; at least 0 is expected")
    return Sampling(
        temperature=0.0 if args.greedy else args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        seed=args.seed,
        top_logprobs=args.top_logprobs,
    )


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def _prompt(args: argparse.Namespace, goes_on: bool) -> str | None:
    """The prompt of ``grebe run``; None when a session just goes on."""
    if goes_on and args.prompt is None and (sys.stdin is None or sys.stdin.isatty()):
        return None
    return _read_text("prompt", args.prompt) or (None if goes_on else "")


def run(args: argparse.Namespace) -> None:
    """``grebe run``: streams text, or one JSON object per token."""
    from . import sessions

    sampling = _sampling(args)
    stop = [_argument("stop", text) for text in args.stop or ()]
    file = None if args.session is None else sessions.session_file(args.session)
    prompt = _prompt(args, file is not None and file.exists())
    with ExitStack() as stack:
        model = stack.enter_context(_load(args))
        cache = None if args.cache is None else stack.enter_context(model.open_cache(args.cache))
        if file is None:
            session = stack.enter_context(model.session(args.ctx, cache=cache))
        else:
            session = stack.enter_context(sessions.open_session(model, file, args.ctx, cache))
            if session.pos > 0:
                print(f"session {args.session}: {session.pos} tokens restored", file=sys.stderr)
        bar = stack.enter_context(ProgressBar("prompt"))
        generation = session.generate(
            prompt,
            max_tokens=args.max_tokens,
            stop=stop,
            sampling=sampling,
            on_progress=bar,
        )
        try:
            if prompt and not args.json and not args.no_echo:
                sys.stdout.write(prompt)
                sys.stdout.flush()
            _print_events(generation, bar, args.json)
        finally:
            if file is not None and not sessions.save_session(session, generation, file):
                bar.close()
                why = "the prompt was not read to its end"
                print(f"session {args.session}: not changed, since {why}", file=sys.stderr)
        if args.json:
            _print_json(_totals(model, generation))


def _print_events(generation: Generation, bar: ProgressBar, as_json: bool) -> None:
    for event in generation:
        bar.close()
        if as_json:
            _print_json(asdict(event))
        else:
            sys.stdout.write(event.text)
            sys.stdout.flush()
        if event.finish_reason is not None:
            break
    if not as_json:
        print()


def _totals(model: Model, generation: Generation) -> dict[str, Any]:
    n = len(generation.tokens)
    return {
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "usage": asdict(generation.usage),
        "seed": generation.seed,
        "prefill_s": round(generation.prefill_s, 6),
        "decode_s": round(generation.decode_s, 6),
        # The first token comes with the prompt; the others took decode_s.
        "decode_tok_per_s": round((n - 1) / generation.decode_s, 3) if n > 1 else None,
        "model": {"fingerprint": model.fingerprint, **model.options},
    }


def inspect(args: argparse.Namespace) -> None:
    """``grebe inspect``: the report, or everything as JSON."""
    from .fileinfo import inspect as inspect_file
    from .report import file_report, tensor_report

    info = inspect_file(args.file or args.model)
    if args.json:
        _print_json(info.to_dict(tensors=args.tensors, n_ctx=args.ctx))
        return
    print(file_report(info, args.ctx))
    if args.tensors:
        print("\ntensors\n" + tensor_report(info))


def bench(args: argparse.Namespace) -> None:
    """``grebe bench``: a table, CSV, or JSON with the machine and the options."""
    from . import __version__, measure
    from .report import columns, printable, size

    if args.plot:
        try:
            import matplotlib  # noqa: F401 - better now than after minutes of measuring
        except ImportError:
            message = "--plot needs matplotlib: pip install 'grebe[plot]'"
            raise InvalidArgumentError(message) from None
    with _load(args) as model, ProgressBar("measuring") as bar:
        bandwidth = measure.read_bandwidth(int(model.options["n_threads"]))
        rows = []
        names = [f.name for f in fields(measure.BenchRow)]
        if args.format == "csv":
            print(",".join(names))
        for row in measure.bench(
            model,
            args.depths,
            n_prefill=args.prefill,
            n_decode=args.decode,
            bandwidth=bandwidth,
            on_progress=bar,
        ):
            bar.close()
            rows.append(row)
            if args.format == "csv":
                values = asdict(row).values()
                cells = (f"{v:.6g}" if isinstance(v, float) else str(v) for v in values)
                print(",".join(cells), flush=True)
        name, options = model.config.name or model.path.name, model.options
        title = f"{printable(name)}, {printable(str(options['device']))}"
        weights = model.bytes_per_token
        if args.format == "json":
            _print_json(
                {
                    "model": {"path": str(model.path), "name": name},
                    "fingerprint": model.fingerprint,
                    "options": options,
                    "version": __version__,
                    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                    "read_bandwidth": round(bandwidth),
                    "bytes_per_token": weights,
                    "rows": [asdict(row) for row in rows],
                }
            )
        elif args.format == "table":
            head = ("depth", "prefill tok/s", "decode tok/s", "spread", "of bandwidth", "KV")
            body = [
                (
                    row.depth,
                    f"{row.prefill_tok_per_s:.1f}",
                    f"{row.decode_tok_per_s:.1f}",
                    f"{row.decode_spread:.0%}",
                    f"{row.bandwidth_share:.0%}",
                    size(row.kv_bytes),
                )
                for row in rows
            ]
            print(f"{title}; {size(weights)} of weights a token; reads {size(bandwidth)}/s")
            print(columns([head, *body], right="rrrrrr"))
        if args.plot:
            measure.plot(rows, Path(args.plot), title)


def tokenize(args: argparse.Namespace) -> None:
    """``grebe tokenize``: id and bytes of every token."""
    from . import Tokenizer
    from .model import Model

    if args.model and args.model.endswith(".json"):
        tokenizer = Tokenizer.from_file(args.model)
    else:
        tokenizer = Model.load(args.model, n_threads=1).tokenizer
    ids = tokenizer.encode(_read_text("text", args.text), args.allow_special)
    pieces = [tokenizer.token_bytes(i).decode("utf-8", "backslashreplace") for i in ids]
    if args.json:
        _print_json({"ids": ids, "pieces": pieces})
    elif args.ids:
        print(*ids)
    else:
        for token, piece in zip(ids, pieces, strict=True):
            print(f"{token:7d}  {piece!r}")


def perplexity(args: argparse.Namespace) -> None:
    """``grebe perplexity``: one line, or JSON."""
    from . import measure

    # Bytes, as stdin gives them: line ends are part of the text.
    if args.file == "-":
        text = _read_text("file", None)
    else:
        text = Path(args.file).read_bytes().decode("utf-8")
    with _load(args) as model, ProgressBar("perplexity") as bar:
        result = measure.perplexity(
            model, text, n_ctx=args.ctx, stride=args.stride, on_progress=bar
        )
    if args.json:
        _print_json({**asdict(result), "n_ctx": args.ctx, "stride": args.stride})
        return
    print(
        f"perplexity {result.perplexity:.4f}, {result.nats_per_token:.5f} nats a token, "
        f"{result.bits_per_byte:.4f} bits a byte over {result.n_tokens} tokens "
        f"({result.tok_per_s:.0f} tok/s)"
    )


def doctor(args: argparse.Namespace) -> None:
    """``grebe doctor``: a table of ops, or one JSON object; an error when one of them is wrong."""
    from . import doctor as checks
    from .report import columns, printable

    chosen = checks.choose(args.op)
    system = checks.system(args.backend)
    results = []
    with ProgressBar("ops") as bar:
        for result in checks.examine(args.backend, chosen):
            results.append(result)
            bar(len(results), len(chosen))
    wrong = [r for r in results if not r.ok]
    if args.json:
        _print_json({"system": system, "results": [asdict(r) for r in results]})
    else:
        print(columns([(name, value) for name, value in system.items() if value], indent=""))
        head = ("op", "shape", "arithmetic", "error", "tolerance", "", "ms")
        body = [
            (
                r.op,
                r.shape,
                "float32" if r.exact else "as models use it",
                "-" if r.error is None else f"{r.error:.1e}",
                f"{r.tolerance:.0e}",
                "ok" if r.ok else "FAIL",
                f"{r.ms:.2f}",
            )
            for r in results
        ]
        print("\n" + columns([head, *body], right="lllrrlr", indent=""))
        for r in wrong:
            if r.problem:
                print(f"{r.op}, {r.shape}: {printable(r.problem)}")
    if wrong:
        raise GrebeError(f"{len(wrong)} of {len(results)} cases are wrong on this machine")
