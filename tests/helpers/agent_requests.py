"""Recorded requests of coding agents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "vectors" / "agents"
CLIENTS = ("claude", "codex", "opencode", "pi", "qwen")


@dataclass(frozen=True)
class Recorded:
    """A request. ``name``: client, scenario and number."""

    name: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def api(self) -> str:
        return "messages" if self.path.startswith("/v1/messages") else "responses"


def scenarios() -> Iterator[tuple[str, list[Recorded]]]:
    """Name and requests of each."""
    for client in CLIENTS:
        data = json.loads((FOLDER / f"{client}.json").read_text())
        parts = data["parts"]
        for scenario, requests in data["scenarios"].items():
            recorded = []
            for request in requests:
                body = dict(request["body"])
                for name in ("tools", "messages", "input", "system"):
                    if isinstance(body.get(name), list):
                        body[name] = [parts[i] for i in body[name]]
                name = f"{client}/{scenario}/{request['n']}"
                recorded.append(Recorded(name, request["path"], request["headers"], body))
            yield f"{client}/{scenario}", recorded
