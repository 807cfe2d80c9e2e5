"""A server that stops in the middle of answers: each ends as its API says, and nothing is lost."""

from __future__ import annotations

import json
import signal
import threading
import time
from typing import Any

from tests.helpers.live import asking, serving
from tests.helpers.serving import Process, connect, read_answer, request_bytes
from tests.helpers.wire import post, sse_events

SLOW = {"content": "word " * 2000, "token_delay_s": 0.02}
SHORT = {"content": "one two three four five six seven eight", "token_delay_s": 0.05}
REPLIES = {"slow": {"steps": [SLOW]}, "short": {"steps": [SHORT]}}
PATHS = ["/v1/chat/completions", "/v1/messages", "/v1/responses"]


def body(path: str, key: str, **more: Any) -> dict[str, Any]:
    text = asking(key)
    if path == "/v1/responses":
        return {"input": text, "reasoning": {"effort": "none"}, **more}
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "thinking": {"type": "disabled"}, "max_tokens": 9000, **more}


def stopped(
    replies: Any, requests: list[tuple[str, Any]], **options: Any
) -> list[tuple[int, bytes]]:
    """What requests get that run when the server stops."""
    answers: dict[int, tuple[int, bytes]] = {}
    with serving(replies, **options) as server:

        def ask(i: int, path: str, data: Any) -> None:
            sock = connect(server.port)
            sock.sendall(request_bytes(path, json.dumps(data).encode()))
            answers[i] = read_answer(sock)
            sock.close()

        threads = [
            threading.Thread(target=ask, args=(i, *request)) for i, request in enumerate(requests)
        ]
        for thread in threads:
            thread.start()
        wanted = min(len(requests), server.options.max_running)
        stats = server.app._stack.stats
        end = time.monotonic() + 20
        while (
            stats()["n_running"] + stats()["n_waiting"] < len(requests)
            or stats()["n_running"] < wanted
        ):
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.1)
        begin = time.monotonic()
        server.close()
        assert time.monotonic() - begin < server.options.shutdown_s + 5
        for thread in threads:
            thread.join(10)
    return [answers[i] for i in range(len(requests))]


def test_short_answers_come_to_their_end():
    answers = stopped(REPLIES, [(path, body(path, "short", stream=True)) for path in PATHS])
    chat, messages, responses = (sse_events(data) for _, data in answers)
    assert chat[-1][1] == "[DONE]"
    assert messages[-1][0] == "message_stop"
    assert responses[-1][0] == "response.completed"
    for _, data in answers:
        assert b"eight" in data


def test_short_whole_answers_too():
    answers = stopped(REPLIES, [(path, body(path, "short")) for path in PATHS])
    for status, data in answers:
        assert status == 200
        assert b"seven eight" in data


def test_long_streams_end_with_the_error_of_their_api():
    answers = stopped(
        REPLIES, [(path, body(path, "slow", stream=True)) for path in PATHS], shutdown_s=0.3
    )
    assert [status for status, _ in answers] == [200] * 3
    chat, messages, responses = (sse_events(data) for _, data in answers)
    assert set(chat[-1][1]["error"]) == {"message", "type", "param", "code"}
    assert messages[-1][0] == "error"
    assert messages[-1][1]["error"]["type"] in ("api_error", "overloaded_error")
    assert responses[-1][0] == "response.failed"
    assert responses[-1][1]["response"]["status"] == "failed"


def test_long_whole_answers_are_errors_of_their_api():
    answers = stopped(REPLIES, [(path, body(path, "slow")) for path in PATHS], shutdown_s=0.3)
    for path, (status, data) in zip(PATHS, answers, strict=True):
        assert status in (500, 503)
        error = json.loads(data)
        assert "shutting down" in error["error"]["message"]
        assert ("request_id" in error) == (path == "/v1/messages")


def test_those_that_wait_are_sent_away():
    answers = stopped(
        REPLIES, [(PATHS[0], body(PATHS[0], "slow"))] * 3, shutdown_s=0.3, max_running=1
    )
    for status, data in answers:
        assert status in (500, 503)
        assert "shutting down" in json.loads(data)["error"]["message"]


def test_who_comes_then_is_told(monkeypatch):
    with serving(REPLIES) as server:
        server.app.refuse("the server is shutting down")
        for path in PATHS:
            status, headers, data = post(server, path, body(path, "short"))
            assert status == 503
            assert int(headers["retry-after"]) > 0
            assert "shutting down" in json.loads(data)["error"]["message"]


def test_what_was_read_and_written_before_the_signal_is_kept(tmp_path):
    """The prompt of an answer that was cut off, and the turn before it."""
    script = tmp_path / "script.json"
    replies = {"first": {"steps": [{"content": "word " * 300}]}, "slow": {"steps": [SLOW]}}
    script.write_text(json.dumps(replies))
    options = ("--scripted-replies", str(script), "--cache-dir", str(tmp_path / "cache"))
    long = " ".join(f"The {n}th bird dived." for n in range(150))
    messages = [{"role": "user", "content": asking("first", long)}]
    chat = {"messages": messages, "thinking": {"type": "disabled"}, "max_tokens": 9000}
    path = "/v1/chat/completions"
    with Process(*options) as server:
        server.wait_ready()
        first = server.post(path, chat)
        messages += [
            first["choices"][0]["message"],
            {"role": "user", "content": asking("slow", long)},
        ]
        sock = connect(server.port)
        sock.sendall(request_bytes(path, json.dumps({**chat, "stream": True}).encode()))
        seen = b""
        while b"word" not in seen:
            seen += sock.recv(4096)
        assert server.stop() == 0
        while part := sock.recv(65536):
            seen += part
        sock.close()
        assert b'"error"' in seen
        assert b"[DONE]" not in seen
    with Process(*options) as server:
        server.wait_ready()
        again = server.post(path, {**chat, "max_tokens": 2})["usage"]
        known = again["prompt_tokens_details"]["cached_tokens"]
        assert again["prompt_tokens"] - known <= 128
        status = server.get("/status")
        assert status["messages_replayed"] == 1
        assert status["cache"]["records_damaged"] == 0


def test_while_the_model_loads():
    """Loading cannot be interrupted; nobody waits for it."""
    from grebe.server.options import ServeOptions
    from grebe.server.run import Server

    loaded = threading.Event()
    closed = threading.Event()

    class Slow:
        close = closed.set

    def load():
        assert loaded.wait(20)
        return Slow(), True

    server = Server(load, ServeOptions(port=0)).start()
    status, headers, data = post(server, PATHS[1], body(PATHS[1], "short"))
    assert status == 503
    assert int(headers["retry-after"]) > 0
    assert json.loads(data)["error"] == {
        "type": "overloaded_error",
        "message": "the model is being loaded",
    }
    begin = time.monotonic()
    server.close()
    assert time.monotonic() - begin < 5
    loaded.set()
    assert closed.wait(10)


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"*": {"steps": [SLOW]}}))
    with Process("--scripted-replies", str(script)) as server:
        server.wait_ready()
        sock = connect(server.port)
        data = json.dumps(body(PATHS[0], "*", stream=True)).encode()
        sock.sendall(request_bytes(PATHS[0], data))
        sock.recv(1000)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        begin = time.monotonic()
        assert server.stop(signal.SIGINT, timeout=10) == 128 + signal.SIGINT
        assert time.monotonic() - begin < 2
        sock.close()
