"""An evening with ``grebe serve``: start, talk, stop, be killed, go on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error

import pytest

from tests.helpers.serving import Process, chat, connect, request_bytes

LONG = " ".join(f"The {n}th bird dived into the lake and came up again." for n in range(120))


def test_talk_and_stop():
    with Process() as server:
        server.wait_ready()
        answer = server.post("/v1/chat/completions", chat("Hello"))
        assert answer["choices"][0]["finish_reason"] in ("stop", "length")
        models = server.get("/v1/models")
        assert models["data"][0]["id"] == "grebe-nano"
        assert server.stop() == 0
        for words in ("ready", f"{server.url}/v1", "ANTHROPIC_BASE_URL", "grebe: stopped"):
            assert words in server.rest


def test_ctrl_c_stops_too():
    with Process() as server:
        server.wait_ready()
        assert server.stop(signal.SIGINT) == 0


def test_a_signal_while_an_answer_runs_ends_it_within_seconds():
    with Process() as server:
        server.wait_ready()
        sock = connect(server.port)
        body = chat("Tell a story", max_tokens=100_000, stream=True, temperature=2, stop=[])
        sock.sendall(request_bytes("/v1/chat/completions", json.dumps(body).encode()))
        assert b"200" in sock.recv(1000)
        begin = time.monotonic()
        assert server.stop(timeout=25) == 0
        assert time.monotonic() - begin < 20
        sock.close()


def test_a_second_signal_stops_at_once(tmp_path):
    script = tmp_path / "script.json"
    script.write_text(
        json.dumps({"*": {"steps": [{"content": "word " * 2000, "token_delay_s": 0.1}]}})
    )
    with Process("--scripted-replies", str(script)) as server:
        server.wait_ready()
        sock = connect(server.port)
        body = chat("x", max_tokens=5000, stream=True)
        sock.sendall(request_bytes("/v1/chat/completions", json.dumps(body).encode()))
        sock.recv(1000)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        begin = time.monotonic()
        assert server.stop(timeout=10) == 128 + signal.SIGTERM
        assert time.monotonic() - begin < 2
        sock.close()


def stderr_of(*argv: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "grebe", "serve", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
    )
    return done.returncode, done.stderr


def test_a_port_that_is_taken_is_said_so():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, text = stderr_of("--port", str(port))
    assert status == 2
    assert f"127.0.0.1:{port}" in text
    assert "--port" in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--host", "0.0.0.0", "--port", "0"], "--api-key"),
        (["--host", "0.0.0.0", "--insecure", "--scripted-replies", "x"], "scripted"),
        (["--host", "no.such.host.invalid", "--insecure"], "cannot listen"),
        (["--port", "99999"], "port"),
        (["--port", "0", "--model", "no-such.gguf"], "no-such.gguf"),
        (["--port", "0", "--scripted-replies", "no-such.json"], "no-such.json"),
        (["--port", "0", "--cache-dir", __file__], "cannot make the directory"),
        (["--port", "0", "--cache-dir", "/dev/null/x"], "cannot make the directory"),
        (["--port", "0", "--n-ctx", "2000000"], "up to 1048576"),
        (["--port", "0", "--n-ctx", "0"], "n_ctx"),
        (["--port", "0", "--cache-gb", "nan"], "cache_gb"),
        (["--port", "0", "--max-running", "0"], "max_running"),
        (["--port", "0", "--threads", "100000"], "n_threads"),
    ],
)
def test_what_cannot_work_is_one_line(argv, words):
    status, text = stderr_of(*argv)
    assert status == 2
    assert words in text
    assert text.count("\n") == 1
    assert text.startswith("grebe: ")


def test_the_key_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("GREBE_API_KEY", "secret")
    with Process() as server:
        server.wait_ready()
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.get("/v1/models")
        assert caught.value.code == 401


def cached(answer) -> int:
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_what_was_read_survives_a_restart(tmp_path):
    asked = chat(LONG)
    with Process("--cache-dir", str(tmp_path)) as server:
        server.wait_ready()
        first = server.post("/v1/chat/completions", asked)
        assert cached(first) == 0
        assert server.stop() == 0
    with Process("--cache-dir", str(tmp_path)) as server:
        server.wait_ready()
        again = server.post("/v1/chat/completions", asked)
        assert again["usage"]["prompt_tokens"] - cached(again) <= 128
        assert server.stop() == 0


def test_kill_in_the_middle_of_an_answer_loses_nothing_that_was_committed(tmp_path):
    asked = chat(LONG, stream=True, max_tokens=20_000)
    with Process("--cache-dir", str(tmp_path)) as server:
        server.wait_ready()
        server.post("/v1/chat/completions", chat(LONG))
        end = time.monotonic() + 30
        while server.get("/status")["cache"]["anchors_on_disk"] < 1:
            assert time.monotonic() < end, "nothing was written"
            time.sleep(0.1)
        sock = connect(server.port)
        sock.sendall(request_bytes("/v1/chat/completions", json.dumps(asked).encode()))
        sock.recv(1000)
        server.kill()
        sock.close()
    with Process("--cache-dir", str(tmp_path)) as server:
        server.wait_ready()
        again = server.post("/v1/chat/completions", chat(LONG))
        assert again["usage"]["prompt_tokens"] - cached(again) <= 128
        assert server.get("/status")["cache"]["records_damaged"] == 0
        assert server.stop() == 0
    done = subprocess.run(
        [sys.executable, "-m", "grebe", "cache", "verify", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("delay", ["token_delay_s", "prefill_delay_s"])
def test_a_client_that_vanishes_frees_its_place(tmp_path, stream, delay):
    script = tmp_path / "script.json"
    step = {"content": "word " * 2000, delay: 0.05 if delay == "token_delay_s" else 60}
    script.write_text(
        json.dumps({"slow": {"steps": [step]}, "*": {"steps": [{"content": "quick"}]}})
    )
    with Process("--scripted-replies", str(script), "--max-running", "1") as server:
        server.wait_ready()
        sock = connect(server.port)
        body = chat("[[script:slow]]", max_tokens=5000, stream=stream)
        sock.sendall(request_bytes("/v1/chat/completions", json.dumps(body).encode()))
        end = time.monotonic() + 20
        while not server.get("/status")["n_running"]:
            assert time.monotonic() < end
        time.sleep(0.3)
        sock.close()
        begin = time.monotonic()
        answer = server.post(
            "/v1/chat/completions", chat("quick, please", thinking={"type": "disabled"})
        )
        assert answer["choices"][0]["message"]["content"] == "quick"
        assert time.monotonic() - begin < 5
        assert server.get("/status")["n_running"] == 0


def test_no_prompt_text_in_the_log(tmp_path):
    secret = "the-word-xyzzy"
    log = tmp_path / "log"
    with Process("-v", log=log) as server:
        server.wait_ready()
        server.post("/v1/chat/completions", {**chat(secret), secret: 1, "unknown": secret})
        with pytest.raises(urllib.error.HTTPError):
            server.post("/v1/chat/completions", chat(secret, temperature="hot"))
        server.stop()
    text = log.read_text()
    assert "POST /v1/chat/completions 200" in text
    assert "unknown" in text  # the ignored field's name
    assert text.count(secret) <= 1  # that of another one
    with Process("--trace", log=log) as server:
        server.wait_ready()
        server.post("/v1/chat/completions", chat("a traced word"))
        server.stop()
    assert "a traced word" in log.read_text()


def test_a_full_queue_says_when_to_come_again(tmp_path):
    script = tmp_path / "script.json"
    script.write_text(
        json.dumps({"*": {"steps": [{"content": "word " * 60, "token_delay_s": 0.05}]}})
    )
    options = ("--scripted-replies", str(script), "--max-running", "1", "--max-waiting", "1")
    with Process(*options) as server:
        server.wait_ready()
        refused = []

        def ask() -> None:
            try:
                server.post("/v1/chat/completions", chat("x", max_tokens=300))
            except urllib.error.HTTPError as error:
                refused.append((error.code, error.headers["retry-after"]))
                error.close()

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 20
        while len(refused) < 3:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert all(code == 429 and int(after) >= 1 for code, after in refused)
        for thread in threads:
            thread.join(60)
