"""``grebe run --session``: text that goes on from call to call as if there had been one."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grebe
import pytest
from grebe import sessions
from grebe.cli import main
from grebe.progress import ProgressBar

from tests.helpers import models

PROMPT = "Once upon a time"
GREEDY = ["run", "--greedy", "--no-echo"]


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    """Where named sessions go; no terminal and no stdin."""
    monkeypatch.delenv("GREBE_MODEL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "stdin", None)
    return tmp_path / "state" / "grebe" / "sessions"


@pytest.fixture
def run(capsys):
    """Runs the command and gives its stdout without the last line end."""

    def call(*argv: str, status: int = 0) -> str:
        assert main(argv) == status
        out, call.err = capsys.readouterr()
        return out.removesuffix("\n")

    return call


def whole(n: int, *options: str) -> list[str]:
    return [*GREEDY, *options, "-n", str(n), PROMPT]


def test_two_calls_are_one(run, folder):
    text = run(*whole(40))
    parts = [run(*GREEDY, "--session", "story", "-n", "15", PROMPT)]
    assert run.err == ""
    for n in (10, 1, 14):
        parts.append(run(*GREEDY, "--session", "story", "-n", str(n)))
        assert run.err == f"session story: {len(sessions_tokens(folder)) - n} tokens restored\n"
    assert "".join(parts) == text
    assert (folder / "story.grebe").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == [folder / "story.grebe"]


def sessions_tokens(folder: Path, name: str = "story") -> list[int]:
    return models.load("embedded").restore(folder / f"{name}.grebe").tokens


def test_a_seed_goes_on_too(run):
    options = ["run", "--no-echo", "--temperature", "1.5", "--seed", "7"]
    text = run(*options, "-n", "40", PROMPT)
    assert text != run(*whole(40))
    parts = [run(*options, "--session", "story", "-n", "25", PROMPT)]
    parts.append(run(*options, "--session", "story", "-n", "15"))
    assert "".join(parts) == text


def test_prompts_follow_each_other(run, folder):
    model = models.load("embedded")
    first = run("run", "--greedy", "--session", "story", "-n", "5", PROMPT)
    assert first.startswith(PROMPT)
    before = sessions_tokens(folder)
    second = run("run", "--greedy", "--json", "--session", "story", "-n", "4", " But then")
    *events, total = map(json.loads, second.splitlines())
    encoded = model.tokenizer.encode(" But then")
    assert sessions_tokens(folder) == before + encoded + [e["token"] for e in events]
    assert before[0] == model.config.bos_token
    assert total["usage"] == {
        "prompt_tokens": len(before) + len(encoded),
        "cached_tokens": len(before),
        "completion_tokens": 4,
    }


def test_stdin_is_a_prompt_and_an_empty_one_is_none(run, folder, monkeypatch):
    def stdin(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    stdin(PROMPT)
    first = run(*GREEDY, "--session", "story", "-n", "5")
    stdin("")
    assert first + run(*GREEDY, "--session", "story", "-n", "5") == run(*whole(10))
    before = sessions_tokens(folder)
    stdin(" The end")
    run(*GREEDY, "--session", "story", "-n", "1")
    encoded = models.load("embedded").tokenizer.encode(" The end")
    assert sessions_tokens(folder)[:-1] == before + encoded


def test_the_end_of_a_text_is_not_part_of_it(tmp_path):
    """So that a prompt can follow."""
    model = models.load("embedded")
    end = grebe.Sampling(logit_bias={model.config.eos_token: 1e9})
    with model.session() as session:
        generation = session.generate(PROMPT, sampling=end)
        assert [event.token for event in generation] == [model.config.eos_token]
        before = session.tokens
        session.rewind(session.pos - 1)
        assert sessions.save_session(session, generation, tmp_path / "x")
        assert session.tokens == before[:-1] == model.restore(tmp_path / "x").tokens


def test_a_stop_string(run, folder):
    text = run(*GREEDY, "--session", "story", "--stop", "girl", PROMPT)
    assert "girl" not in text
    decoded = models.load("embedded").tokenizer.decode(sessions_tokens(folder)[1:])
    assert decoded.startswith(PROMPT + text + "girl")
    rest = run(*GREEDY, "--session", "story", "-n", "5")
    assert run(*whole(len(sessions_tokens(folder)) - 5)).startswith(text + "girl" + rest)


def test_a_path_is_a_file_of_its_own(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = run(*whole(10))
    for name in (str(tmp_path / "a"), "b.grebe", "./c"):
        parts = [run(*GREEDY, "--session", name, "-n", "5", PROMPT)]
        parts.append(run(*GREEDY, "--session", name, "-n", "5"))
        assert "".join(parts) == text
        assert (tmp_path / name).is_file()
    assert not (tmp_path / "state").exists()


def test_a_context_that_is_full_can_grow(run):
    run(*GREEDY, "--session", "story", "--ctx", "20", "-n", "100", PROMPT)
    run(*GREEDY, "--session", "story", status=2)
    assert "context of 20" in run.err.splitlines()[-1]
    run(*GREEDY, "--session", "story", "--ctx", "10", status=2)
    assert "n_ctx is 10" in run.err
    run(*GREEDY, "--session", "story", "--ctx", "30")
    assert run.err == "session story: 20 tokens restored\n"
    run(*GREEDY, "--session", "story", status=2)  # the new one was kept


# ------------------------------------------------------------------ interruptions


def test_ctrl_c_between_tokens_keeps_what_was_said(run, folder):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "grebe",
            *GREEDY,
            "--json",
            "--session",
            "story",
            "-n",
            "2000",
            PROMPT,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = [process.stdout.readline() for _ in range(10)]
    process.send_signal(signal.SIGINT)
    lines += process.stdout.readlines()
    assert (process.stderr.read(), process.wait(60)) == ("", 130)
    process.stdout.close()
    process.stderr.close()
    said = "".join(json.loads(line)["text"] for line in lines)
    model = models.load("embedded")
    assert model.tokenizer.decode(sessions_tokens(folder)[1:]) == PROMPT + said
    rest = run(*GREEDY, "--session", "story", "-n", "10")
    assert (said + rest).startswith(run(*whole(len(sessions_tokens(folder)) - 5)))


def test_ctrl_c_in_the_prompt_leaves_the_session(run, folder, monkeypatch):
    run(*GREEDY, "--session", "story", "-n", "5", PROMPT)
    before = (folder / "story.grebe").read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "__call__", interrupt)
        run(*GREEDY, "--session", "story", "word " * 600, status=130)
    assert "not changed" in run.err
    assert (folder / "story.grebe").read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "__call__", interrupt)
        run(*GREEDY, "--session", "new", "word " * 600, status=130)
    assert list(folder.iterdir()) == [folder / "story.grebe"]


def test_a_reader_that_goes_away_keeps_what_was_said(folder):
    pipe = subprocess.Popen(
        [sys.executable, "-m", "grebe", *GREEDY, "--session", "story", "-n", "60", PROMPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert pipe.stdout.read(4)
    pipe.stdout.close()
    assert pipe.stderr.read() == b""
    pipe.stderr.close()
    assert pipe.wait(60) == 1
    assert len(sessions_tokens(folder)) > 5


def test_an_error_of_the_generation(run, folder, monkeypatch):
    def broken(event: grebe.Event) -> dict[str, object]:
        raise grebe.BackendError("the device is gone", "matmul")

    monkeypatch.setattr("grebe.commands.asdict", broken)
    run("run", "--json", "--session", "story", PROMPT, status=1)
    assert run.err == "grebe: the device is gone\n"
    assert len(sessions_tokens(folder)) == 6  # with the one token that there was


# ------------------------------------------------------------------ errors


def test_a_session_of_another_model(run, folder, tmp_path):
    run(*GREEDY, "--session", "story", "-n", "1", PROMPT)
    before = (folder / "story.grebe").read_bytes()
    tiny = models.load("tiny_gguf")
    run(*GREEDY, "--model", str(models.fixture_path("tiny_gguf")), "--session", "story", status=2)
    assert run.err.count("\n") == 1
    for words in (
        str(folder / "story.grebe"),
        tiny.fingerprint,
        models.load("embedded").fingerprint,
        "remove the file",
    ):
        assert words in run.err
    run(*GREEDY, "--kernels", "exact", "--session", "story", status=2)
    assert "kernels" in run.err
    assert (folder / "story.grebe").read_bytes() == before


def test_a_damaged_file(run, folder):
    run(*GREEDY, "--session", "story", "-n", "1", PROMPT)
    file = folder / "story.grebe"
    file.write_bytes(file.read_bytes()[:-100])
    run(*GREEDY, "--session", "story", status=2)
    assert run.err.startswith(f"grebe: {file}: byte ")
    assert run.err.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["", "a b", "a*", ".hidden", "-x", "..", "a\nb", "x" * 101, "h\udcff"]
)
def test_names_with_odd_characters(run, name):
    run("run", f"--session={name}", PROMPT, status=2)
    assert run.err.startswith("grebe: session is ")
    assert run.err.count("\n") == 1


@pytest.mark.parametrize("name", ["a", "Story-2_b.txt", "Müsli", "日記", "x" * 100])
def test_names_that_are_fine(folder, name):
    assert sessions.session_file(name) == folder / f"{name}.grebe"


def test_folders_that_will_not_do(run, tmp_path):
    run("run", "--session", str(tmp_path / "none" / "x"), PROMPT, status=2)
    assert "no such folder" in run.err
    run("run", "--session", f"{tmp_path}/", PROMPT, status=2)
    assert run.err.startswith("grebe: ")
    (tmp_path / "state").write_text("a file")
    run("run", "--session", "x", PROMPT, status=2)
    assert "cannot make the folder" in run.err


def test_a_folder_that_cannot_be_written(run, tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    if os.geteuid() == 0:  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
    run("run", "--session", str(tmp_path / "x"), PROMPT, status=2)
    assert "cannot be written" in run.err


def test_where_sessions_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert sessions.state_folder() == tmp_path / ".local" / "state" / "grebe" / "sessions"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert sessions.state_folder() == tmp_path / ".local" / "state" / "grebe" / "sessions"
    monkeypatch.setattr(sys, "platform", "darwin")
    mac = tmp_path / "Library" / "Application Support" / "grebe" / "sessions"
    assert sessions.state_folder() == mac
