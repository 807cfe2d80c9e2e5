"""``import grebe`` costs little and brings in nothing that only a server, a plot or a command needs."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

LIMIT_S = 0.15
CODE = """
import time
import numpy
start = time.perf_counter()
import grebe
print(time.perf_counter() - start)
"""
HEAVY = ("asyncio", "argparse", "matplotlib", "starlette", "uvicorn", "fastapi", "httpx", "pydantic", "tokenizers",
         "msgspec", "h11", "llguidance", "grebe.server", "grebe.chat",
         "importlib.metadata", "http.server")  # fmt: skip


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout


def test_import_time_beyond_numpy():
    run(CODE)  # byte code and file cache
    times = [float(run(CODE)) for _ in range(5)]
    assert statistics.median(times) < LIMIT_S, times


def test_import_is_light():
    out = run(
        "import numpy, sys\nbefore = set(sys.modules)\nimport grebe\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules and m not in before])"
    )
    assert out.strip() == "[]"


def test_import_starts_no_thread():
    if not os.path.isdir("/proc/self/task"):  # noqa: PTH112 - a feature test, not a path of ours
        return
    out = run("import os, numpy\nn = len(os.listdir('/proc/self/task'))\nimport grebe\n"
              "print(len(os.listdir('/proc/self/task')) - n)")  # fmt: skip
    assert out.strip() == "0"
