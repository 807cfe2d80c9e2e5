"""The committed stub of the extension is what nanobind would write today."""

from __future__ import annotations

import difflib
import importlib.resources
import subprocess
import sys
from pathlib import Path

import grebe


def test_stub_is_fresh(tmp_path):
    fresh = tmp_path / "_engine.pyi"
    command = [
        sys.executable,
        "-m",
        "nanobind.stubgen",
        "--quiet",
        "-m",
        "grebe._engine",
        "-o",
        str(fresh),
    ]
    subprocess.run(command, check=True, cwd=tmp_path)
    committed = Path(__file__).parents[2] / "python" / "grebe" / "_engine.pyi"
    diff = difflib.unified_diff(
        committed.read_text().splitlines(),
        fresh.read_text().splitlines(),
        "committed",
        "fresh",
        lineterm="",
    )
    changes = "\n".join(diff)
    assert not changes, f"run: make stubs\n{changes}"


def test_the_package_says_that_it_is_typed():
    files = importlib.resources.files(grebe)
    for name in ("py.typed", "_engine.pyi"):
        assert (files / name).is_file()
