"""What ``grebe serve`` does: starts the server, says how to use it, stops it in good order."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .agents import CLIENTS, settings
from .report import columns, printable

if TYPE_CHECKING:
    import argparse

    from .server.run import Server

__all__ = ["add_parser", "serve"]

DEFAULT_PORT = 8000


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], add_model: Any
) -> None:
    """Adds ``serve``."""
    parser = subparsers.add_parser(
        "serve",
        help="serve the OpenAI and Anthropic APIs",
        description="Serves OpenAI's Chat Completions and Responses, Anthropic's Messages, and a "
        "page with chat and status.",
    )
    parser.set_defaults(run=serve)
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDR", help="default: 127.0.0.1")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, metavar="N",
        help=f"default: {DEFAULT_PORT}; 0 takes any that is free",
    )  # fmt: skip
    parser.add_argument("--name", metavar="ID", help="what clients call the model")
    parser.add_argument(
        "--n-ctx", type=int, metavar="N",
        help="tokens of context of a conversation (default: 131072, or what the model can)",
    )  # fmt: skip
    parser.add_argument(
        "--max-running", type=int, default=16, metavar="N",
        help="requests computed together (default: 16)",
    )  # fmt: skip
    parser.add_argument(
        "--max-waiting", type=int, default=64, metavar="N",
        help="requests that may wait; more get a 429 (default: 64)",
    )  # fmt: skip
    add_model(parser)
    group = parser.add_argument_group("KV store")
    group.add_argument(
        "--cache-dir", metavar="DIR",
        help="keep what is computed here, so that a restart reads no conversation again",
    )  # fmt: skip
    group.add_argument(
        "--cache-gb", type=float, default=32.0, metavar="X", help="of files there (default: 32)"
    )
    group.add_argument(
        "--ram-gb", type=float, default=1.0, metavar="X",
        help="of what is also there, in memory (default: 1)",
    )  # fmt: skip
    group = parser.add_argument_group("who may use it")
    group.add_argument(
        "--api-key", action="append", metavar="KEY",
        help="ask for this key; may be repeated (default: $GREBE_API_KEY)",
    )  # fmt: skip
    group.add_argument(
        "--insecure", action="store_true",
        help="let other machines in without a key, with a --host that they can reach",
    )  # fmt: skip
    group.add_argument(
        "--allow-host", action="append", metavar="NAME",
        help="a name by which this machine is called; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--cors", action="append", metavar="ORIGIN",
        help="let web pages of this origin in; may be repeated, * is all",
    )  # fmt: skip
    group = parser.add_argument_group("protocol")
    group.add_argument(
        "--generation", choices=("0731", "may"),
        help="checkpoint that the prompts are for (default: by the file's name, else 0731)",
    )  # fmt: skip
    group.add_argument(
        "--official-sampling", action="store_true",
        help="ignore temperature and top_p while thinking, as DeepSeek's API does",
    )  # fmt: skip
    group.add_argument(
        "--scripted-replies", metavar="FILE", help="forced outputs, for tests of clients"
    )
    group = parser.add_argument_group("log")
    group.add_argument("-v", "--verbose", action="store_true", help="also ignored fields")
    group.add_argument("-q", "--quiet", action="store_true", help="errors only")
    group.add_argument(
        "--trace", action="store_true", help="all bodies: the log then holds conversations"
    )


def serve(args: argparse.Namespace) -> None:
    """``grebe serve``: until a signal comes."""
    from .server.run import Server, loader, server_options

    _log(args)
    keys = args.api_key or [key for key in [os.environ.get("GREBE_API_KEY", "")] if key]
    options = server_options(
        host=args.host,
        port=args.port,
        name=args.name,
        n_ctx=args.n_ctx,
        cache_dir=args.cache_dir,
        cache_gb=args.cache_gb,
        ram_gb=args.ram_gb,
        api_keys=tuple(keys),
        insecure=args.insecure,
        allowed_hosts=tuple(args.allow_host or ()),
        cors=tuple(args.cors or ()),
        generation=args.generation,
        official_sampling=args.official_sampling,
        scripted_replies=args.scripted_replies,
        trace=args.trace,
        max_waiting=args.max_waiting,
        max_running=args.max_running,
    )
    server = Server(
        loader(
            args.model,
            args.backend,
            args.threads,
            kv_rounding=args.kv_rounding,
            kernels=args.kernels,
        ),
        options,
    )
    print(f"grebe: loading {printable(_file(args.model))}; {server.url}", flush=True)
    threading.Thread(target=_announce, args=(server,), daemon=True).start()
    server.run()
    print("grebe: stopped", flush=True)


def _file(model: str | None) -> str:
    return "the model inside the package" if model is None else Path(model).name


def _announce(server: Server) -> None:
    try:
        server.wait_ready()
    except Exception:
        return  # run() raises it
    print(banner(server.url, server.app.facts, bool(server.options.api_keys)), flush=True)


def banner(url: str, facts: dict[str, Any], needs_key: bool) -> str:
    """What to do with the server, ready to paste."""
    model, n_ctx = str(facts["id"]), int(facts["n_ctx"])
    key = "YOUR-KEY" if needs_key else "any"
    rows = [
        ("page", f"{url}/"),
        ("OpenAI", f"base URL {url}/v1   key {key}   model {model}"),
        ("Anthropic", f"base URL {url}      key {key}   model {model}"),
    ]
    lines = [
        f"grebe: ready: {model} on {facts['backend']}, {n_ctx} tokens of context",
        columns(rows),
        "",
        "  Claude Code:",
        *(f"    {line}" for line in settings("claude", url, model, n_ctx, key).shell()),
        f"  {', '.join(c for c in CLIENTS if c != 'claude')}: grebe agents NAME "
        f"{'' if url.endswith(f':{DEFAULT_PORT}') else f'--url {url} '}prints theirs",
        "",
        "Ctrl-C stops.",
    ]
    return "\n".join(lines)


def _log(args: argparse.Namespace) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    level = logging.DEBUG if args.verbose else logging.ERROR if args.quiet else logging.INFO
    for name, least in (("grebe", level), ("uvicorn.error", max(level, logging.WARNING))):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(least)
        logger.propagate = False
