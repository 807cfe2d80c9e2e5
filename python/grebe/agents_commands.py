"""What ``grebe agents`` does: shows how to start a coding agent with the server, or starts it."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .agents import CLIENTS, AgentSettings, settings
from .errors import GrebeError, InvalidArgumentError
from .report import printable
from .sessions import state_folder

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "agents"]

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 10


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``agents``."""
    parser = subparsers.add_parser(
        "agents",
        help="use the server from a coding agent",
        description="Prints how to use a running server from a coding agent, or starts the agent.",
    )
    parser.set_defaults(run=agents)
    parser.add_argument("client", choices=tuple(CLIENTS), help="the agent's command")
    parser.add_argument(
        "--url", default=DEFAULT_URL, metavar="URL", help=f"of the server (default: {DEFAULT_URL})"
    )
    parser.add_argument(
        "--api-key", metavar="KEY", help="of the server (default: $GREBE_API_KEY, or any)"
    )
    parser.add_argument(
        "--run", nargs="...", dest="start",  # argparse.REMAINDER
        help="start the agent here; all that follows is passed on to it",
    )  # fmt: skip


def agents(args: argparse.Namespace) -> None:
    """``grebe agents``."""
    key = args.api_key or os.environ.get("GREBE_API_KEY") or "any"
    url = args.url.rstrip("/").removesuffix("/v1")
    model = _model(url, key)
    n_ctx = int(model.get("context_length") or model.get("max_model_len") or 131_072)
    chosen = settings(args.client, url, str(model["id"]), n_ctx, key)
    if args.start is None:
        print(_text(chosen), end="")
    else:
        _start(args.client, chosen, args.start)


def _model(url: str, key: str) -> dict[str, Any]:
    """What the server says of its model."""
    if not url.startswith(("http://", "https://")):
        raise InvalidArgumentError(f"url is {url!r}; something like {DEFAULT_URL} is expected")
    request = urllib.request.Request(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            found = json.load(answer)
        model = found["data"][0]
        return dict(model, id=str(model["id"]))
    except urllib.error.HTTPError as error:
        hint = "; give its key with --api-key" if error.code == 401 else ""
        raise GrebeError(f"the server at {url} answers {error.code}{hint}") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise GrebeError(f"no server at {url} ({reason}); start one with grebe serve") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise GrebeError(f"what listens at {url} is no model server") from None


def _text(chosen: AgentSettings) -> str:
    """For people and for shells: all but commands are comments."""
    lines = [f"# {chosen.command}: {chosen.install}"]
    if chosen.file:
        lines += [f"# ~/{chosen.file}:", *(f"#   {line}" for line in chosen.content.splitlines())]
    lines += chosen.shell()
    return "".join(f"{printable(line)}\n" for line in lines)


def _start(name: str, chosen: AgentSettings, rest: list[str]) -> None:
    """Becomes the agent. The user's own settings are left as they are."""
    program = shutil.which(chosen.command)
    if program is None:
        raise GrebeError(f"{chosen.command} is not installed; {chosen.install}")
    env = {**os.environ, **chosen.env}
    if chosen.folder_env:
        folder = state_folder().parent / "agents" / name
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / Path(chosen.file).name
        file.write_text(chosen.content, encoding="utf-8")
        file.chmod(0o600)
        env[chosen.folder_env] = str(folder)
    os.execve(program, [chosen.command, *chosen.args, *rest], env)
