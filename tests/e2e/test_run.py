"""What a user's first minute looks like: the two commands of the README, as processes of their own."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

LIMIT_S = 1.0


@pytest.fixture(scope="module")
def command() -> str:
    beside = str(Path(sys.executable).parent)
    found = shutil.which("grebe", path=os.pathsep.join([beside, os.environ["PATH"]]))
    assert found, "the command grebe is not installed"
    return found


def test_the_embedded_model_answers_within_a_second_of_process_start(command):
    times = []
    for _ in range(4):
        start = time.perf_counter()
        with subprocess.Popen(
            [command, "run", "--greedy", "Once upon a time"], stdout=subprocess.PIPE
        ) as process:
            text = b""
            while len(text) <= len(
                b"Once upon a time"
            ):  # the prompt is echoed; a byte more is an answer
                text += os.read(process.stdout.fileno(), 1)
            times.append(time.perf_counter() - start)
            process.stdout.read()
        assert process.returncode == 0
    assert statistics.median(times[1:]) < LIMIT_S, times  # the first run reads the files from disk


def test_the_text_is_the_same_every_time(command):
    argv = [command, "run", "--greedy", "-n", "60", "Once upon a time"]
    texts = {
        subprocess.run(argv, check=True, capture_output=True, text=True).stdout for _ in range(2)
    }
    assert len(texts) == 1
    words = texts.pop().split()
    assert words[:7] == ["Once", "upon", "a", "time,", "there", "was", "a"]
    assert len(words) > 40


def test_threads_do_not_change_the_text(command):
    argv = [command, "run", "--seed", "5", "-n", "40", "--threads"]
    texts = {
        subprocess.run([*argv, n, "Once"], check=True, capture_output=True, text=True).stdout
        for n in "12"
    }
    assert len(texts) == 1


def test_python_m_grebe(command):
    a = subprocess.run([command, "--version"], check=True, capture_output=True, text=True).stdout
    b = subprocess.run(
        [sys.executable, "-m", "grebe", "--version"], check=True, capture_output=True, text=True
    ).stdout
    assert a == b
