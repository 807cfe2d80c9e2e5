"""What is no HTTP, or comes too slowly, too large or not at all: an answer or an end, and soon."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Iterator

import pytest
from grebe.server import http
from grebe.server.limits import BodyReader
from grebe.server.run import Server

from tests.helpers.live import serving
from tests.helpers.serving import connect, raw, read_answer, request_bytes

CHAT = json.dumps(
    {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "stream": False}
).encode()
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)
LATE_S = 0.5
LIMIT = 100_000


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving({"*": {"steps": [{"content": "quack"}]}}, max_body_bytes=LIMIT) as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(server, monkeypatch):
    monkeypatch.setattr(http, "HEAD_S", LATE_S)
    monkeypatch.setattr(http, "LINGER_S", LATE_S)
    bodies = BodyReader(LIMIT, idle_s=LATE_S, total_s=2 * LATE_S)
    monkeypatch.setattr(server.app, "_bodies", bodies)


@pytest.fixture(autouse=True)
def serves_on(server, caplog) -> Iterator[None]:
    """After each test the server still answers, and nothing went wrong that it did not expect."""
    caplog.set_level(logging.WARNING)
    yield
    status, data = raw(server.port, request_bytes("/v1/chat/completions", CHAT))
    assert status == 200
    assert json.loads(data)["choices"][0]["message"]["content"] == "quack"
    assert [r.getMessage() for r in caplog.records] == []


def openai_error(data: bytes) -> dict:
    error = json.loads(data)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def ends(sock: socket.socket, within: float = 5.0) -> bytes:
    """All that still comes before the server ends the connection."""
    sock.settimeout(within)
    parts = []
    while True:
        try:
            part = sock.recv(65536)
        except ConnectionResetError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


# ------------------------------------------------------------------ not HTTP


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)) + b"\r\n\r\n",  # TLS
        b"hello\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTX/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /he\xffalth HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",  # no host
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: b\x00c\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1e3\r\n\r\n",
        HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n{}  ",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffff\r\n",
    ],
)
def test_what_is_no_http_is_a_400(server, data):
    begin = time.monotonic()
    with connect(server.port) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = ends(sock)
    assert time.monotonic() - begin < 5
    if answer:  # some are only half a request
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.split()[1] in (b"400", b"501"), head
        openai_error(body)


def test_most_of_that_has_an_answer(server):
    for data in (b"hello\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n"):
        status, body = raw(server.port, data)
        assert status == 400
        openai_error(body)


@pytest.mark.parametrize("n", [1, 1000])
def test_gigantic_headers(server, n):
    lines = b"".join(b"X-%d: %s\r\n" % (i, b"a" * (200_000 // n)) for i in range(n))
    status, body = raw(
        server.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n"
    )
    assert status == 431
    openai_error(body)


def test_a_gigantic_path(server):
    status, body = raw(
        server.port, b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    assert status in (400, 431)
    openai_error(body)
    status, body = raw(server.port, b"GET /" + b"%00%ff/.." * 900 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert status == 403  # an unknown host
    status, body = raw(
        server.port, b"GET /" + b"%00%ff/.." * 900 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    assert status == 404
    assert len(openai_error(body)["message"]) < 2000


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/page/../app.py", "/page/%2e%2e/app.py", "//", "/page/"]
)
def test_there_are_no_other_files(server, path):
    status, body = raw(server.port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert status == 404
    openai_error(body)


# ------------------------------------------------------------------ slow


@pytest.mark.parametrize("data", [b"", b"G", HEAD, HEAD + b"X: "])
def test_a_head_that_never_ends(server, data):
    begin = time.monotonic()
    with connect(server.port) as sock:
        sock.sendall(data)
        answer = ends(sock)
    assert LATE_S * 0.9 < time.monotonic() - begin < 10 * LATE_S
    assert answer == b"" if not data else answer.startswith(b"HTTP/1.1 408 ")


def test_a_head_that_trickles(server):
    begin = time.monotonic()
    with connect(server.port) as sock, pytest.raises(ConnectionError):
        for _ in range(1000):
            sock.sendall(b"X-A: b\r\n" if begin < time.monotonic() - 0.01 else HEAD)
            time.sleep(0.02)
    assert time.monotonic() - begin < 10 * LATE_S


@pytest.mark.parametrize("head", [b"Content-Length: 900", b"Transfer-Encoding: chunked"])
def test_a_body_that_never_ends(server, head):
    part = b"1\r\n{\r\n" if b"chunked" in head else b"{"
    with connect(server.port) as sock:
        sock.sendall(HEAD + head + b"\r\n\r\n" + part)
        status, body = read_answer(sock)
        assert status == 408
        openai_error(body)
        assert ends(sock) == b""


def test_a_body_that_trickles(server):
    begin = time.monotonic()
    with connect(server.port) as sock:
        sock.sendall(HEAD + b"Content-Length: 9000\r\n\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                sock.sendall(b" ")
                time.sleep(0.02)
    assert time.monotonic() - begin < 10 * LATE_S


def test_messages_have_their_own_shape_then_too(server):
    head = HEAD.replace(b"chat/completions", b"messages")
    with connect(server.port) as sock:
        sock.sendall(head + b"Content-Length: 900\r\n\r\n{")
        status, body = read_answer(sock)
    assert status == 408
    assert json.loads(body)["error"]["type"] == "timeout_error"


def test_a_body_shorter_than_it_said_and_gone(server):
    with connect(server.port) as sock:
        sock.sendall(HEAD + b"Content-Length: 900\r\n\r\n" + CHAT)
        sock.shutdown(socket.SHUT_WR)
        assert ends(sock) == b""  # it has gone: nobody is owed an answer


def test_a_body_longer_than_it_said(server):
    """What is over is taken for the next request, which is none."""
    with connect(server.port) as sock:
        sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (len(CHAT) - 2) + CHAT + b"\r\n\r\n")
        answer = ends(sock)
    assert answer.count(b"HTTP/1.1 400 ") == 2


# ------------------------------------------------------------------ large


def test_a_body_that_says_it_is_too_large(server):
    status, body = raw(server.port, HEAD + b"Content-Length: 999999999999999999999999\r\n\r\n")
    assert status in (400, 413)
    openai_error(body)
    status, body = raw(server.port, HEAD + b"Content-Length: %d\r\n\r\n" % (LIMIT + 1))
    assert status == 413
    assert str(LIMIT) in openai_error(body)["message"]


def test_the_rest_of_a_refused_body_is_taken_for_a_while(server):
    """The client sends it all before it looks: it must not find a broken connection."""
    size = 5_000_000
    with connect(server.port) as sock:
        sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % size + b" " * size)
        status, _ = read_answer(sock)
        assert status == 413
        sock.sendall(request_bytes("/v1/chat/completions", CHAT))
        assert read_answer(sock)[0] == 200


def test_the_rest_of_a_refused_body_is_not_taken_for_ever(server):
    begin = time.monotonic()
    with connect(server.port) as sock:
        sock.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):
            while time.monotonic() < begin + 20:
                sock.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                time.sleep(0.001)
    assert time.monotonic() - begin < 10 * LATE_S


def test_garbage_after_a_refusal(server):
    with connect(server.port) as sock:
        sock.sendall(
            HEAD.replace(b"application/json", b"text/plain") + b"Transfer-Encoding: chunked\r\n\r\n"
        )
        assert read_answer(sock)[0] == 415
        sock.sendall(b"no chunk\r\n")
        assert ends(sock) == b""


# ------------------------------------------------------------------ many, old and unusual


def test_pipelined_requests_are_answered_in_order(server):
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    chat = request_bytes("/v1/chat/completions", CHAT)
    lost = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = health.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with connect(server.port) as sock:
        sock.sendall(health + chat + lost + chat + last)
        answer = ends(sock, 20)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"200", b"200", b"404", b"200", b"200"]


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0(server, stream):
    body = json.dumps({**json.loads(CHAT), "stream": stream}).encode()
    request = request_bytes("/v1/chat/completions", body).replace(b"HTTP/1.1", b"HTTP/1.0")
    with connect(server.port) as sock:
        sock.sendall(request)
        answer = ends(sock, 20)
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == b"200"
    assert b"chunked" not in head.lower()
    assert rest.endswith(b"data: [DONE]\n\n" if stream else b"}")


def test_expect_100_continue(server):
    with connect(server.port) as sock:
        sock.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(CHAT))
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 ")
        sock.sendall(CHAT)
        assert read_answer(sock)[0] == 200
    with connect(server.port) as sock:
        sock.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (LIMIT + 1))
        assert read_answer(sock)[0] == 413


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/messages", "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
        ("OPTIONS", "/metrics", "GET, HEAD"),
        ("FROB", "/v1/responses", "POST"),
    ],
)
def test_wrong_methods(server, method, path, allowed):
    with connect(server.port) as sock:
        sock.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        head, _, body = ends(sock).partition(b"\r\n\r\n")
    assert head.split()[1] == b"405"
    found = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"allow: "))
    assert sorted(found[7:].decode().upper().split(", ")) == sorted(allowed.split(", "))
    if path == "/v1/messages":
        assert json.loads(body)["type"] == "error"
    else:
        openai_error(body)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (None, 200),
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("\x80", 415),
    ],
)
def test_kinds_of_content(server, kind, status):
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(CHAT)}\r\n"
    )
    if kind is not None:
        head += f"Content-Type: {kind}\r\n"
    found, body = raw(server.port, head.encode("latin-1") + b"\r\n" + CHAT)
    assert found == status
    if status == 415:
        assert "application/json is expected" in openai_error(body)["message"]


def test_compressed_bodies(server):
    data = request_bytes("/v1/chat/completions", CHAT, headers="Content-Encoding: gzip\r\n")
    status, body = raw(server.port, data)
    assert status == 415
    assert "gzip" in openai_error(body)["message"]


def test_a_websocket_is_refused(server):
    upgrade = (
        b"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    status, body = raw(server.port, upgrade)
    assert status == 426
    openai_error(body)


def test_many_connections_that_say_nothing(server):
    socks = [connect(server.port) for _ in range(200)]
    status, _ = raw(server.port, request_bytes("/v1/chat/completions", CHAT))
    assert status == 200
    for sock in socks:
        assert ends(sock) == b""
        sock.close()
