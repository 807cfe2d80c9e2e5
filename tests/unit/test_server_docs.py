"""The pages on the server say what the program says."""

from __future__ import annotations

import argparse
import doctest
import re
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest
from grebe.agents import CLIENTS, settings
from grebe.cli import make_parser
from grebe.serve_commands import banner
from grebe.server import http, limits, sse
from grebe.server.anthropic_schemas import MessagesBody
from grebe.server.app import OPEN_PATHS, OWN_PATHS
from grebe.server.options import ServeOptions
from grebe.server.page import PATHS
from grebe.server.responses_schemas import ResponsesBody
from grebe.server.schemas import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

from tests.helpers.live import asking, serving
from tests.helpers.wire import post

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SERVER = (DOCS / "server.md").read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """From a heading to the next of its kind."""
    found = re.search(rf"^(#+) {re.escape(title)}$(.*?)(?=^#{{1,6}} |\Z)", text, re.M | re.S)
    assert found is not None, title
    return found[2]


def cells(text: str) -> list[list[str]]:
    """Rows of the tables."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [row for row in rows if not re.fullmatch("-+", row[0])]


def code(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


# ------------------------------------------------------------------ the command


def serve_parser() -> argparse.ArgumentParser:
    (sub,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return sub.choices["serve"]


def test_options():
    documented = {
        name
        for row in cells(section(SERVER, "Options"))
        for name in code(row[0])
        if name.startswith("-")
    }
    real = {s for a in serve_parser()._actions for s in a.option_strings} - {"-h", "--help"}
    assert documented == real


def test_defaults():
    defaults = {
        a.option_strings[-1]: a.default for a in serve_parser()._actions if a.option_strings
    }
    for name, default, *_ in cells(section(SERVER, "Options"))[1:]:
        names = [n for n in re.findall(r"`(--[a-z-]+)`", name) if n in defaults]
        values = re.findall(r"`([0-9.]+)`", default)
        for option, value in zip(names, values, strict=False):
            if option != "--n-ctx":
                assert str(defaults[option]).removesuffix(".0") == value, option
    of_class = {f.name: f.default for f in fields(ServeOptions)}
    for option, value in defaults.items():
        name = option.strip("-").replace("-", "_")
        if value and name in of_class:
            assert of_class[name] == value, option


def test_banner():
    start = SERVER.index("grebe: ready:")
    end = SERVER.index("```", start)
    facts = {"id": "deepseek-v4-flash", "backend": "cpu", "n_ctx": 131072}
    assert SERVER[start:end] == banner("http://127.0.0.1:8000", facts, False) + "\n"


def test_agents():
    rows = cells(section(SERVER, "Coding agents"))[1:]
    assert [row[0] for row in rows] == [f"`grebe agents {name}`" for name in CLIENTS]
    for name, row in zip(CLIENTS, rows, strict=True):
        chosen = settings(name, "http://x", "m", 1000)
        if chosen.file:
            assert f"`~/{chosen.file}`" in row[2]


# ------------------------------------------------------------------ HTTP


def test_endpoints():
    with serving({"*": {"steps": [{"content": "x"}]}}) as server:
        routes = {(m, r.path) for r in server.app._stack.routes for m in r.methods - {"HEAD"}}
    real = {(m, path.replace(":path", "")) for m, path in routes}
    real |= {("GET", path) for path in (OPEN_PATHS | OWN_PATHS) - (PATHS - {"/"}) - {"/api/hello"}}
    documented = set()
    for row in cells(section(SERVER, "Endpoints")):
        for methods, path in re.findall(
            r"((?:(?:GET|POST|DELETE)(?:` and `)?)+) (/[^`]*)`", row[0]
        ):
            documented |= {(method, path) for method in re.findall("GET|POST|DELETE", methods)}
    assert documented == real


def test_metrics():
    with serving({"a": {"steps": [{"content": "x"}]}}, cache_dir=None) as server:
        post(
            server, "/v1/chat/completions", {"messages": [{"role": "user", "content": asking("a")}]}
        )
        from grebe.server import metrics

        stats = {
            **server.app._stack.stats(),
            "cache": dict.fromkeys((row[0] for row in metrics._CACHE), 0),
        }
        text = metrics.prometheus(server.app.counters, stats, server.app.facts, True)
    real = set(re.findall(r"^# TYPE grebe_(\w+)", text, re.M))
    documented = {name for row in cells(section(SERVER, "Metrics"))[1:] for name in code(row[0])}
    assert documented == real


def test_times_and_sizes():
    text = section(SERVER, "Times and sizes")
    for words in (
        f"every {sse.KEEPALIVE_S:g} s",
        f"after {sse.STALL_S:g} s its stream is ended",
        f"kept for {http.IDLE_S} s",
        f"{http.HEAD_S:g} s and {http.MAX_HEAD_BYTES >> 10} KiB",
        f"{limits.IDLE_S:g} s between its parts, {limits.TOTAL_S:g} s and "
        f"{ServeOptions().max_body_bytes >> 20} MiB in all",
        f"{limits.MAX_BUFFERED >> 20} MiB of all clients",
        f"{limits.MAX_JSON_DEPTH} levels deep",
    ):
        assert words in text
    assert f"gives those that run {ServeOptions().shutdown_s:g} seconds" in SERVER


def test_the_line_of_the_log():
    from grebe.server.notes import Note

    note = Note(18211, 18048, 96, end="tool_calls")
    assert f"200 3.127 s{note}\n" in SERVER


# ------------------------------------------------------------------ parameters

PAGES = [
    ("chat-completions.md", "`POST /v1/chat/completions`", ChatBody),
    ("chat-completions.md", "`POST /v1/completions`", CompletionBody),
    ("chat-completions.md", "`POST /tokenize`, `POST /detokenize`", TokenizeBody),
    ("chat-completions.md", "`POST /tokenize`, `POST /detokenize`", DetokenizeBody),
    ("messages.md", "Anthropic's Messages: what each parameter does", MessagesBody),
    ("responses.md", "OpenAI's Responses: what each parameter does", ResponsesBody),
]


@pytest.mark.parametrize(("page", "title", "kind"), PAGES, ids=lambda v: getattr(v, "__name__", v))
def test_every_parameter_is_in_its_table(page: str, title: str, kind: type[msgspec.Struct]):
    text = section((DOCS / page).read_text(encoding="utf-8"), title)
    if kind is CompletionBody:  # "as above"
        text += section((DOCS / page).read_text(encoding="utf-8"), PAGES[0][1])
    words = {word for span in code(text) for word in re.findall(r"[a-z_]{1,}", span)}
    missing = set(kind.__struct_fields__) - words
    assert missing == set()


@pytest.mark.parametrize(
    ("page", "title", "kind"), PAGES[:1] + PAGES[4:], ids=lambda v: getattr(v, "__name__", v)
)
def test_every_row_of_a_table_is_a_parameter(page: str, title: str, kind: type[msgspec.Struct]):
    known = _names(kind)
    for first, *_ in cells(section((DOCS / page).read_text(encoding="utf-8"), title))[1:]:
        for name in code(first):
            head = re.split(r"[.\[ ]", name)[0]
            assert head in known or first.startswith(("role", "last")), name


def _names(kind: type[msgspec.Struct]) -> set[str]:
    """Of the fields, of those within them, and of what stays a dictionary or a header."""
    names = {*kind.__struct_fields__, *CompletionBody.__struct_fields__}
    return names | {
        "tool_call_id", "defer_loading", "text", "reasoning", "x-session-affinity", "session_id",
        "x-claude-code-session-id",
    }  # fmt: skip


# ------------------------------------------------------------------ pages


def test_examples_run():
    result = doctest.testfile(str(DOCS / "server.md"), module_relative=False)
    assert result.failed == 0
    assert result.attempted > 5


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda p: p.name
)
def test_links_lead_somewhere(path: Path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        to = (path.parent / file) if file else path
        assert to.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", to.read_text(encoding="utf-8"), re.M)
            assert anchor in {
                re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles
            }, target
