"""A script that ends while daemon threads are in the engine ends as scripts do: quietly, status 0."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys, threading, time
import grebe
model = grebe.Model.load(n_threads=1, prefill_chunk=64)
session = model.session()
inside = threading.Event()
ids = [5] * 400_000

def slow(done, total):
    inside.set()
    time.sleep(20)

def encode():
    inside.set()
    while True:
        model.tokenizer.encode("hello world " * 100_000)

def step():
    inside.set()
    while True:
        model.step([(session, [1])])

work = {
    "prefill": lambda: session.prefill(ids, lambda done, total: inside.set()),
    "slow callback": lambda: session.prefill(ids, slow),
    "generate": lambda: [inside.set() for _ in session.generate("Once", max_tokens=None)],
    "encode": encode,
    "step": step,
}[sys.argv[1]]
threading.Thread(target=work, daemon=True).start()
assert inside.wait(20)
time.sleep(0.05)
"""


@pytest.mark.parametrize("work", ["prefill", "slow callback", "generate", "encode", "step"])
def test_daemon_threads_do_not_abort_the_process(work):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, work], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_exit_hooks_may_use_the_engine():
    """Hooks run last in, first out: one of before the import comes after the package's own."""
    script = (
        "import atexit\n"
        "atexit.register(lambda: print(model.complete('Once', max_tokens=2).finish_reason))\n"
        "import grebe\n"
        "model = grebe.Model.load(n_threads=1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "length\n", "")
