"""The lint refuses what Apple's compiler would, and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .compiler import Source, lint
from .conftest import KERNELS

ROOT = Path(__file__).resolve().parents[2]
REFUSED = (KERNELS / "refused.metal").read_text()


def run(*args: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.metal_emu.compiler", *args]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_every_violation_is_refused_at_its_line():
    lines = REFUSED.splitlines()
    bad = {i + 1 for i, line in enumerate(lines) if "// BAD" in line}
    findings = lint(Source.read(KERNELS / "refused.metal"))
    found = {int(n) for text in findings for n in re.findall(r"refused\.metal:(\d+):", text)}
    missed = [lines[i - 1] for i in sorted(bad - found)]
    assert len(bad) >= 25
    assert not missed
    # Notes may point at declarations; errors only at violations.
    heads = [re.match(r".*refused\.metal:(\d+):(?:\d+:)? error:", text) for text in findings]
    assert all(heads), [text for text, head in zip(findings, heads, strict=True) if not head]
    assert {int(head.group(1)) for head in heads if head} <= bad


@pytest.mark.parametrize("name", ["reduce", "matvec", "matmul", "language", "defects"])
def test_sound_kernels(name):
    assert lint(Source.read(KERNELS / f"{name}.metal")) == []


def test_the_kernels_of_the_engine():
    """As the command that people type."""
    kernels = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "metal").glob("*.metal"))
    assert kernels
    result = run("lint", *kernels)
    assert (result.returncode, result.stderr) == (0, "")


def test_text_from_elsewhere():
    """Flattened libraries come through standard input; #line says what they were made of."""
    text = '#line 1 "metal/norm.metal"\n#include <metal_stdlib>\n#line 40 "metal/common.h"\ndouble x();\n'
    result = run("lint", "-", text=text)
    assert result.returncode == 1
    assert re.match(r"metal/common\.h:40:\d+: error: use of type 'double'", result.stderr)
    assert run("lint", "-", text="#include <metal_stdlib>\n").returncode == 0


def test_a_broken_compiler_is_no_clean_lint(monkeypatch):
    monkeypatch.setenv("METAL_EMU_CLANG", "false")
    monkeypatch.setenv("METAL_EMU_CXX", "false")
    assert run("lint", "tests/metal_emu/kernels/reduce.metal").returncode == 1


def test_no_compiler_is_said(tmp_path):
    """Without ziglang and without an override the message says what to install."""
    program = (
        "import sys; sys.modules['ziglang'] = None\n"
        "from tests.metal_emu.compiler import CompileError, Source, lint\n"
        "try: lint(Source('\\n', 'x.metal'))\n"
        "except CompileError as e: print(e)\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "METAL_EMU_CACHE": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )  # fmt: skip
    assert "install the test extra (ziglang)" in result.stdout
