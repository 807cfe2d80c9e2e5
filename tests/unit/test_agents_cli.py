"""``grebe agents``: what it prints can be pasted, and what it starts is set up and leaves the user's files alone."""

from __future__ import annotations

import http.server
import json
import shlex
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from grebe.agents import CLIENTS
from grebe.cli import main

from tests.helpers.live import serving

REPLIES = {"*": {"steps": [{"content": "x"}]}}


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch):
    monkeypatch.delenv("GREBE_API_KEY", raising=False)


@pytest.fixture(scope="module")
def server():
    with serving(REPLIES, n_ctx=5000, name="bird") as running:
        yield running


def printed(capsys, *argv: str) -> tuple[int, str, str]:
    status = main(["agents", *argv])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("client", CLIENTS)
def test_what_is_printed_is_shell(capsys, server, client):
    for url in (server.url, server.url + "/", server.url + "/v1"):
        status, out, err = printed(capsys, client, "--url", url)
        assert (status, err) == (0, "")
        assert "bird" in out
        assert server.url in out
        assert f"{server.url}/v1/v1" not in out
    lines = [line for line in out.splitlines() if not line.startswith("#")]
    assert lines
    for line in lines:
        assert shlex.split(line)[0] in ("export", client)
    checked = subprocess.run(["sh", "-n"], input=out, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


def fake(folder: Path, name: str) -> None:
    """A client that tells what it was given."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], dict(os.environ)]))\n"
    )
    program.chmod(0o755)


@pytest.mark.parametrize("client", CLIENTS)
def test_what_is_started(tmp_path, monkeypatch, server, client):
    fake(tmp_path / "bin", client)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    argv = [
        "agents",
        client,
        "--url",
        server.url,
        "--api-key",
        "k",
        "--run",
        "-p",
        "do it",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "grebe", *argv], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    args, env = json.loads(done.stdout)
    assert args[-2:] == ["-p", "do it"]
    told = json.dumps([args, env]) + "".join(
        path.read_text() for path in home.rglob("*") if path.is_file()
    )
    for word in ("bird", server.url, "5000"):
        assert word in told
    assert not (home / f".{client}").exists()
    assert not (home / ".config").exists()
    for path in home.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_a_server(capsys):
    status, out, err = printed(capsys, "claude", "--url", "http://127.0.0.1:1")
    assert (status, out) == (1, "")
    assert "start one with grebe serve" in err
    assert err.count("\n") == 1


def test_with_a_key(capsys, monkeypatch):
    with serving(REPLIES, api_keys=("secret",)) as server:
        status, _, err = printed(capsys, "codex", "--url", server.url)
        assert status == 1
        assert "401; give its key with --api-key" in err
        status, out, _ = printed(capsys, "codex", "--url", server.url, "--api-key", "secret")
        assert status == 0
        assert "GREBE_KEY=secret" in out
        monkeypatch.setenv("GREBE_API_KEY", "secret")
        assert printed(capsys, "codex", "--url", server.url)[0] == 0


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b'{"data": []}', b"[1]", b'{"data": [{}]}'])
def test_with_something_else_there(capsys, answer):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        status, _, err = printed(capsys, "pi", "--url", f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
        thread.join()
    assert status == 1
    assert "no model server" in err


def test_an_address_that_is_none(capsys):
    status, _, err = printed(capsys, "claude", "--url", "ftp://x")
    assert status == 2
    assert "http://127.0.0.1:8000 is expected" in err


def test_a_client_that_is_not_installed(capsys, monkeypatch, server, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, err = printed(capsys, "claude", "--url", server.url, "--run")
    assert status == 1
    assert "npm install -g @anthropic-ai/claude-code" in err
