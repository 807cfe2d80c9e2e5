"""The work that every agent is given: files, prompts, the model's scripted replies, what must come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients import Client

#: How a reply is chosen: a prompt ends in this.
MARK = "[[script:{key}]]"
ODD = 'TAX = 0.19  # "nineteen", 19\\100 <b>&amp;</b> \U0001f980 \u6f22\u5b57 \u00fc'

FILES = {
    "prices.csv": "apple,1.50\npear,2.25\nplum,3.25\n",
    "total.py": "TAX = 0.07\n"
    "net = sum(float(line.split(',')[1]) for line in open('prices.csv'))\n"
    "print(f'{net * (1 + TAX):.2f}')\n",
}


@dataclass(frozen=True)
class Turn:
    """A prompt of the user, and what the agent does with it.

    Attributes:
        steps: replies of the model: a text, tool calls as (name, *values), or both.
        says: the end of the answer, which the client prints.
        files: as they are afterwards.
        token_s: how long the first reply takes for a token.
    """

    prompt: str
    steps: Sequence[Mapping[str, Any]]
    says: str
    files: Mapping[str, str]
    token_s: float = 0.0

    def reply(self, client: Client, folder: Path) -> dict[str, Any]:
        """As `grebe serve --scripted-replies` wants it."""
        steps = []
        for step in [*self.steps, {"think": "All is done.", "say": self.says}]:
            made: dict[str, Any] = {}
            if "think" in step:
                made["reasoning"] = step["think"]
            if "say" in step:
                made["content"] = step["say"]
            if "do" in step:
                made["tool_calls"] = [client.call(folder, *call) for call in step["do"]]
            steps.append(made)
        steps[0]["token_delay_s"] = self.token_s
        return {"tools_required": True, "steps": steps}


TURNS = (
    Turn(
        "Read prices.csv and total.py, and write the total into total.txt.",
        [
            {"think": "First the files.", "do": [("read", "prices.csv"), ("read", "total.py")]},
            {"say": "Now the total.", "do": [("run", "python3 total.py | tee total.txt")]},
        ],
        "FIRST-OK the total is 7.49",
        {"total.txt": "7.49\n"},
    ),
    Turn(
        "The tax is 19 per cent. Correct it and show the new total.",
        [
            {"think": 'A line of total.py: "TAX".', "do": [("read", "total.py")]},
            {"do": [("edit", "total.py", "TAX = 0.07", ODD)]},
            {"say": "It runs?\n\n", "do": [("run", "python3 total.py > total.txt; cat total.txt")]},
        ],
        "SECOND-OK the total is 8.33",
        {"total.txt": "8.33\n", "total.py": FILES["total.py"].replace("TAX = 0.07", ODD)},
    ),
    # The server is restarted before this one.
    Turn(
        "A plum is 4.25 now.",
        [
            {"think": "Look again.", "do": [("read", "prices.csv"), ("run", "ls")]},
            {"think": "Edit.", "do": [("edit", "prices.csv", "plum,3.25", "plum,4.25")]},
            {"do": [("run", "python3 total.py > total.txt")]},
        ],
        "THIRD-OK the total is 9.52",
        {"total.txt": "9.52\n", "prices.csv": FILES["prices.csv"].replace("3.25", "4.25")},
    ),
    # The server is killed while it streams the first reply.
    Turn(
        "Append the word checked to total.txt.",
        [
            {
                "think": "This is said slowly.",
                "say": "One moment. " * 20,
                "do": [("run", "echo checked >> total.txt")],
            },
            {"do": [("read", "total.txt")]},
        ],
        "FOURTH-OK it is there once",
        {"total.txt": "9.52\nchecked\n"},
        token_s=0.03,
    ),
)
RESTART_BEFORE, KILL_IN = 2, 3


def script(clients: Sequence[Client], root: Path) -> dict[str, Any]:
    """The replies for all clients; calls name files by their paths."""
    replies: dict[str, Any] = {"*": {"steps": [{"content": "A short title"}]}}
    for client in clients:
        for i, turn in enumerate(TURNS):
            replies[key(client, i)] = turn.reply(client, project(root, client))
    return replies


def key(client: Client, i_turn: int) -> str:
    """Of the reply to a turn's prompt."""
    return f"{client.name}.{i_turn}"


def project(root: Path, client: Client) -> Path:
    """The folder that the client works in."""
    return root / client.name / "project"


def prepare(root: Path, client: Client) -> None:
    """Writes the files of the project."""
    folder = project(root, client)
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)


def wrong(folder: Path, turn: Turn, printed: str) -> list[str]:
    """What did not come of a turn."""
    problems = [] if turn.says in printed else [f"not printed: {turn.says!r}"]
    for name, text in turn.files.items():
        found = (folder / name).read_text() if (folder / name).exists() else None
        if found != text:
            problems.append(f"{name} holds {found!r}")
    return problems
