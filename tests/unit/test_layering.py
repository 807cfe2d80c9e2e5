"""Who may know whom, as a program: includes of C++ sources and imports of Python modules."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Folder of csrc -> folders whose headers it may include (its own always).
MAY_INCLUDE = {
    "core": set(),
    "quant": {"core"},
    "io": {"core", "quant"},
    "text": {"core", "io"},  # tokenizer arrays come from a GgufFile
    "sampling": {"core"},
    "backend": {"core", "quant"},
    "model": {"core", "quant", "io", "text", "backend", "session"},
    "store": {"core", "io"},
    "session": {"core", "quant", "io", "model", "backend", "store"},
}
PUBLIC = {"grebe.h"}
# The bindings see the public boundary; the files of single operations, for tests and benchmarks, also what is behind it.
BINDINGS = {"grebe.h", "bindings.h", "text/", "sampling/", "session/kv_cache.h", "io/storage.h"}
STORE_BINDINGS = {*BINDINGS, "io/", "store/"}
OPS_BINDINGS = {
    "grebe.h",
    "bindings.h",
    "backend_ops.h",
    "backend/",
    "core/",
    "io/",
    "model/",
    "quant/",
}
# Python module -> what it must not import.
FORBIDDEN = {
    "errors": {"grebe"},
    "events": {"grebe._engine", "grebe.model", "grebe.session", "numpy"},
    "stopping": {"grebe._engine", "grebe.model", "grebe.session", "numpy"},
    "report": {"grebe._engine", "grebe.model", "grebe.session", "numpy"},
    "progress": {"grebe._engine", "grebe.model", "grebe.session", "numpy"},
    "config": {"grebe.model", "grebe.session", "grebe.generate", "grebe.cli"},
    "generate": {"grebe.cli", "grebe.commands", "grebe.measure"},
    "sessions": {"grebe.cli", "grebe.commands", "grebe.measure"},
    "session": {"grebe.cli", "grebe.commands", "grebe.measure"},
    "model": {"grebe.cli", "grebe.commands", "grebe.measure"},
    "chat_session": {"grebe.cli", "grebe.commands", "grebe.server", "grebe.model"},
    "agents": {"grebe.server", "grebe.model", "grebe.session", "numpy"},
}
# The chat protocol is text and tokens: of the package it may know these, beside itself.
CHAT_MAY_IMPORT = {"grebe.errors", "grebe.config", "grebe.stopping", "grebe.checks", "grebe.chat"}
# The server sees the engine through jobs.JobRunner; these are behind it, or start it.
SERVER_ENGINE_SIDE = {"worker", "inbox", "running", "scheduler", "sessions", "stack", "run"}
SERVER_MAY_IMPORT = {
    "grebe.errors", "grebe.config", "grebe.checks", "grebe.events", "grebe.stopping", "grebe.chat",
    "grebe.server",
}  # fmt: skip
WEB = {"starlette", "uvicorn", "h11", "msgspec", "anyio"}
PLATFORM_IN_CODE = re.compile(r"^\s*#\s*if.*(__APPLE__|_WIN32)", re.M)


def sources(folder: str) -> list[Path]:
    return [p for p in (ROOT / folder).rglob("*") if p.suffix in {".h", ".cpp", ".mm"}]


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("path", sources("csrc"), ids=lambda p: str(p.relative_to(ROOT)))
def test_engine_includes(path: Path):
    folder = path.relative_to(ROOT / "csrc").parts[0]
    text = path.read_text(encoding="utf-8")
    assert "Python.h" not in text
    assert "nanobind" not in text
    if folder in PUBLIC:
        return
    for name in includes(path):
        if "/" not in name:  # a neighbour, or the public header, which model and session implement
            assert name not in PUBLIC or folder in {"model", "session"}, (
                f"{path.name} includes {name}"
            )
            continue
        target = name.split("/")[0]
        if target in MAY_INCLUDE:
            assert target == folder or target in MAY_INCLUDE[folder], f"{path.name} includes {name}"
        if folder in {"model", "session"}:  # the interface, never a backend
            assert not re.match(r"backend/(cpu|metal|cuda)/", name), f"{path.name} includes {name}"


@pytest.mark.parametrize("path", sources("src"), ids=lambda p: p.name)
def test_binding_includes(path: Path):
    allowed = OPS_BINDINGS if path.stem.endswith("ops") else BINDINGS
    if path.stem == "store":  # the commands of grebe cache, and tests
        allowed = STORE_BINDINGS
    for name in includes(path):
        assert any(name == a or (a.endswith("/") and name.startswith(a)) for a in allowed), name


def imports(path: Path, package: str = "grebe") -> set[str]:
    """Absolute names of what a module imports when it is loaded or when a function runs, typing aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for child in block.body
        for node in ast.walk(child)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names |= {module} if node.module else {f"{module}.{a.name}" for a in node.names}
    return names


@pytest.mark.parametrize("module", FORBIDDEN)
def test_python_imports(module: str):
    found = imports(ROOT / "python" / "grebe" / f"{module}.py")
    for name in found:
        for forbidden in FORBIDDEN[module]:
            assert name != forbidden and not name.startswith(forbidden + "."), (
                f"{module} imports {name}"
            )


def foreign(path: Path, package: str, allowed: set[str]) -> set[str]:
    """What a module of a package imports of grebe beyond what it may."""
    found = {name for name in imports(path, package) if name.split(".")[0] == "grebe"}
    return {n for n in found if not any(n == a or n.startswith(a + ".") for a in allowed)}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "python/grebe/chat").glob("*.py")), ids=lambda p: p.stem
)
def test_chat_is_text_and_tokens(path: Path):
    checksums = {"grebe._engine"} if path.stem == "replay_store" else set()
    assert foreign(path, "grebe.chat", CHAT_MAY_IMPORT | checksums) == set()
    assert not {name.split(".")[0] for name in imports(path, "grebe.chat")} & WEB


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in sorted((ROOT / "python/grebe/server").rglob("*.py"))
        if p.stem not in SERVER_ENGINE_SIDE
    ],
    ids=lambda p: p.stem,
)
def test_server_sees_the_engine_through_jobs(path: Path):
    package = "grebe." + ".".join(path.relative_to(ROOT / "python/grebe").parts[:-1])
    allowed = SERVER_MAY_IMPORT | ({"grebe.server.stack"} if path.stem == "app" else set())
    assert foreign(path, package, allowed) == set()
    engine_side = {f"grebe.server.{name}" for name in SERVER_ENGINE_SIDE}
    if path.stem != "app":  # makes the whole thing on request
        assert not imports(path, package) & engine_side


def test_only_these_know_how_http_is_spoken():
    for path in (ROOT / "python/grebe/server").rglob("*.py"):
        if path.stem != "http":
            assert not {n.split(".")[0] for n in imports(path)} & {"uvicorn", "h11"}, path.name


def test_only_these_know_the_command_line():
    for path in (ROOT / "python" / "grebe").glob("*.py"):
        if path.stem not in {"cli", "commands", "__main__"}:
            assert "argparse" not in imports(path), path.name


def test_platforms_are_chosen_by_the_build():
    allowed = {"cpu_features.cpp"}  # asks the operating system for the processor's features
    for path in sources("csrc"):
        if path.name not in allowed:
            assert not PLATFORM_IN_CODE.search(path.read_text(encoding="utf-8")), path.name
