"""Bodies that no client sends, to every endpoint: understood or refused in the API's own words."""

from __future__ import annotations

import http.client
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from grebe.server.anthropic_schemas import CountBody, MessagesBody
from grebe.server.responses_schemas import ResponsesBody
from grebe.server.run import Server
from grebe.server.schemas import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.full_bodies import FULL
from tests.helpers.live import serving
from tests.helpers.wire import sse_events
from tests.helpers.wire_types import ANY, SPECIAL, bodies, mutated

ENDPOINTS = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/messages": MessagesBody,
    "/v1/messages/count_tokens": CountBody,
    "/v1/responses": ResponsesBody,
    "/v1/responses/input_tokens": ResponsesBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"input": "x"},
    "/v1/responses/input_tokens": {"input": "x"},
    "/tokenize": {"content": "x"},
    "/detokenize": {"tokens": [5, 6]},
}
#: Each run draws the same ones, so a longer hunt needs more of them.
EXAMPLES = int(os.environ.get("GREBE_TEST_EXAMPLES", 100))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Its forced answers are short; n_ctx bounds what is not forced.
    reply = {"steps": [{"reasoning": "hm", "content": "quack"}]}
    with serving({"*": reply}, n_ctx=4096) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_fails(caplog) -> Iterator[None]:
    caplog.set_level(logging.WARNING)
    yield
    assert [r.getMessage() for r in caplog.records] == []


def send(server: Server, path: str, data: bytes) -> tuple[int, str, bytes]:
    """Status, kind and bytes of the answer; it comes within seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("POST", path, data, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.getheader("content-type", ""), answer.read()
    finally:
        connection.close()


def check(path: str, status: int, kind: str, data: bytes) -> None:
    """A good answer, or a refusal in the right shape."""
    if status == 200:
        if kind.startswith("text/event-stream"):
            _whole(path, data)
        else:
            json.loads(data)
        return
    assert status in (400, 404), (status, data[:500])
    _refusal(path, status, data)


def _refusal(path: str, status: int, data: bytes) -> None:
    body = json.loads(data)
    if path.startswith("/v1/messages"):
        assert set(body) == {"type", "error", "request_id"}
        assert body["type"] == "error"
        kinds = {400: "invalid_request_error", 404: "not_found_error"}
        assert body["error"]["type"] == kinds[status]
    else:
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"]
    assert len(body["error"]["message"]) < 5000


def _whole(path: str, data: bytes) -> None:
    last = {
        "/v1/chat/completions": (None, "[DONE]"),
        "/v1/completions": (None, "[DONE]"),
        "/v1/messages": ("message_stop", None),
        "/v1/responses": (("response.completed", "response.incomplete"), None),
    }
    name, value = sse_events(data)[-1]
    names, wanted = last[path]
    assert name in names if isinstance(names, tuple) else name == names
    assert wanted is None or value == wanted


def sent(server: Server, path: str, strategy: st.SearchStrategy[Any]) -> Counter[int]:
    """How many got which status."""
    statuses: Counter[int] = Counter()

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    @given(strategy)
    def sending(body: Any) -> None:
        status, kind, data = send(server, path, json.dumps(body).encode())
        statuses[status] += 1
        check(path, status, kind, data)

    sending()
    return statuses


@pytest.mark.parametrize("path", ENDPOINTS)
def test_bodies_that_nearly_fit(server, path):
    assert sent(server, path, bodies(ENDPOINTS[path]))[400] > EXAMPLES // 10


@pytest.mark.parametrize("path", ENDPOINTS)
def test_bodies_that_use_everything_with_something_wrong(server, path):
    status, _, data = send(server, path, json.dumps(FULL[path]).encode())
    assert status == 200, data
    statuses = sent(server, path, mutated(FULL[path]))
    assert statuses[200] > EXAMPLES // 10
    assert statuses[400] > EXAMPLES // 10


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_field_with_values_of_every_kind(server, path):
    values = [None, True, 0, -1, 1.5, 10**30, "", "x", [], {}, [[]], [None], [{}], {"a": None}]
    for field in ENDPOINTS[path].__struct_fields__:
        for value in values:
            body = {**VALID[path], field: value}
            check(path, *send(server, path, json.dumps(body).encode()))


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b"0",
        b'"x"',
        b"{",
        b"{}}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": \xff\xfe}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"a": 01}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"\0" * 1000,
    ],
    ids=lambda data: repr(data[:16]),
)
def test_what_is_no_json_or_no_object(server, path, data):
    status, kind, body = send(server, path, data)
    if path in ("/v1/responses", "/v1/completions") or path.endswith("input_tokens"):
        return check(path, status, kind, body)  # nothing is asked for, which is possible
    assert status == 400
    _refusal(path, status, body)


@pytest.mark.parametrize("path", [p for p in ENDPOINTS if p != "/detokenize"])
def test_text_of_special_tokens_stays_text(server, path):
    valid = json.dumps(VALID[path])

    @settings(max_examples=30, suppress_health_check=list(HealthCheck), database=None)
    @given(SPECIAL)
    def sending(text: str) -> None:
        body = valid.replace('"x"', json.dumps(text)).encode()
        status, kind, data = send(server, path, body)
        assert status == 200, data
        check(path, status, kind, data)

    sending()


@pytest.mark.parametrize("items", [[], [{}], [{"type": "reasoning"}], [{"type": "item_reference"}]])
def test_a_conversation_of_nothing(server, items):
    for path in ("/v1/responses", "/v1/responses/input_tokens"):
        check(path, *send(server, path, json.dumps({"input": items}).encode()))
    for path in ("/v1/chat/completions", "/v1/messages"):
        check(path, *send(server, path, json.dumps({**VALID[path], "messages": []}).encode()))


def test_duplicate_keys(server):
    """The last one counts, as with everybody's JSON."""
    data = b'{"messages": 5, "messages": [{"role": "user", "role": "user", "content": "x"}]}'
    assert send(server, "/v1/chat/completions", data)[0] == 200
    data = b'{"messages": [{"role": "user", "content": "x"}], "messages": 5}'
    status, _, body = send(server, "/v1/chat/completions", data)
    assert status == 400
    assert json.loads(body)["error"]["param"] == "messages"


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_responses_that_were_never_given(server, method):
    for name in (
        "x",
        "resp_" + "a" * 5000,
        "%00",
        "%ff",
        "..",
        "%2e%2e%2f",
        "\u00fc".encode().hex(),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        tail = "/cancel" if method == "POST" else ""
        connection.request(method, f"/v1/responses/{name}{tail}")
        answer = connection.getresponse()
        assert answer.status == 404
        _refusal("", 404, answer.read())
        connection.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_very_many_of_everything(server, path):
    many = 20_000
    for body in (
        {"messages": [{"role": "user", "content": "x"}] * many, "input": [{"role": "user", "content": "x"}] * many},
        {**VALID[path], "tools": [{}] * many},
        {**VALID[path], "stop": ["x"] * many, "stop_sequences": ["x"] * many},
        {**VALID[path], "metadata": {str(n): "x" for n in range(many)}},
        {**VALID[path], **{f"field{n}": n for n in range(many)}},
        {**VALID[path], "logit_bias": {str(n): 1 for n in range(many)}},
    ):  # fmt: skip
        check(path, *send(server, path, json.dumps(body).encode()))


@settings(max_examples=100, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_headers_of_sessions_may_be_anything(server, data):
    names = st.sampled_from(["x-session-affinity", "session_id", "x-claude-code-session-id", "anthropic-beta",
                             "anthropic-version", "openai-beta", "accept", "user-agent"])  # fmt: skip
    text = st.text(
        st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40
    )
    headers = {data.draw(names): data.draw(text).strip() for _ in range(2)}
    path = data.draw(st.sampled_from(["/v1/chat/completions", "/v1/messages", "/v1/responses"]))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(
        "POST", path, json.dumps(VALID[path]), {"content-type": "application/json", **headers}
    )
    answer = connection.getresponse()
    check(path, answer.status, answer.getheader("content-type", ""), answer.read())
    connection.close()


@settings(max_examples=100, suppress_health_check=list(HealthCheck), database=None)
@given(schema=ANY)
def test_schemas_of_tools_may_be_anything(server, schema):
    tools = [{"type": "function", "function": {"name": "a", "parameters": schema, "strict": True}}]
    body = {**VALID["/v1/chat/completions"], "tools": tools, "tool_choice": "required"}
    path = "/v1/chat/completions"
    check(path, *send(server, path, json.dumps(body).encode()))
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = {**VALID["/v1/chat/completions"], "response_format": form}
    check(path, *send(server, path, json.dumps(body).encode()))
