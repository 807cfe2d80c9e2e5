"""Who may send a request, and how much."""

from __future__ import annotations

import json

import pytest
from grebe.errors import InvalidArgumentError
from grebe.server.errors import ApiError
from grebe.server.limits import MAX_JSON_DEPTH, json_depth
from grebe.server.options import ServeOptions, is_loopback
from grebe.server.security import Guard
from hypothesis import given
from hypothesis import strategies as st


def headers(**values: str) -> list[tuple[bytes, bytes]]:
    return [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in values.items()]


# ------------------------------------------------------------------ addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback(host):
    assert is_loopback(host)
    ServeOptions(host=host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", ""])
def test_other_addresses_need_a_key_or_consent(host):
    assert not is_loopback(host)
    with pytest.raises(InvalidArgumentError, match="--api-key"):
        ServeOptions(host=host)
    ServeOptions(host=host, api_keys=("k",))
    ServeOptions(host=host, insecure=True)


def test_scripted_replies_are_for_this_machine():
    ServeOptions(scripted_replies="x.json")
    for more in ({"api_keys": ("k",)}, {"insecure": True}):
        with pytest.raises(InvalidArgumentError, match="scripted"):
            ServeOptions(host="0.0.0.0", scripted_replies="x.json", **more)


@pytest.mark.parametrize(
    "options",
    [
        {"port": -1},
        {"port": 65536},
        {"api_keys": ("",)},
        {"api_keys": ("ключ",)},
        {"generation": "june"},
        {"max_running": 0},
        {"max_waiting": -1},
        {"max_body_bytes": 1},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(InvalidArgumentError):
        ServeOptions(**options)


# ------------------------------------------------------------------ keys


def test_without_keys_anything_will_do():
    guard = Guard()
    assert guard.owner(headers()) == ""
    assert guard.owner(headers(authorization="Bearer whatever")) == ""
    assert not guard.needs_key


def test_keys():
    guard = Guard(["first", "second"])
    one = guard.owner(headers(authorization="Bearer first"))
    assert one == guard.owner(headers(x_api_key="first")) == guard.owner(headers(authorization="bearer first"))  # fmt: skip
    assert guard.owner(headers(x_api_key="second")) not in ("", one)
    assert "first" not in one
    # Clients send a dummy in one header and the key in another.
    assert guard.owner(headers(x_api_key="dummy", authorization="Bearer first")) == one
    for wrong in (headers(), headers(x_api_key="firs"), headers(authorization="Basic first"), headers(x_api_key="")):  # fmt: skip
        with pytest.raises(ApiError) as caught:
            guard.owner(wrong)
        assert caught.value.status == 401


# ------------------------------------------------------------------ web pages


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "a.localhost:1", "192.168.1.4:8000",
     "host.docker.internal:8000"],
)  # fmt: skip
def test_own_names(host):
    Guard().check_origin(headers(host=host))


@pytest.mark.parametrize(
    "host", ["evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "[::1", "a b"]
)
def test_a_domain_that_was_bent_to_this_machine_is_refused(host):
    with pytest.raises(ApiError) as caught:
        Guard().check_origin(headers(host=host))
    assert caught.value.status == 403
    Guard(["key"]).check_origin(headers(host=host))  # the page does not know the key


def test_allowed_names():
    Guard(allowed_hosts=["Box.example"]).check_origin(headers(host="box.example:80"))


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1:8001", "file://"]
)  # fmt: skip
def test_pages_of_others_are_refused(origin):
    with pytest.raises(ApiError) as caught:
        Guard().check_origin(headers(host="127.0.0.1:8000", origin=origin))
    assert caught.value.status == 403


def test_own_page_and_allowed_pages():
    Guard().check_origin(headers(host="localhost:8000", origin="http://localhost:8000"))
    guard = Guard(cors=["http://localhost:3000"])
    guard.check_origin(headers(host="localhost:8000", origin="http://localhost:3000"))
    with pytest.raises(ApiError):
        guard.check_origin(headers(host="localhost:8000", origin="http://localhost:3001"))
    Guard(cors=["*"]).check_origin(headers(host="localhost:8000", origin="null"))


# ------------------------------------------------------------------ depth

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a"\\[]{}\n\u00e9'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='k"\\{['), inner, max_size=3),
    max_leaves=20,
)  # fmt: skip


def depth_of(value) -> int:
    if isinstance(value, dict):
        return 1 + max((depth_of(v) for v in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((depth_of(v) for v in value), default=0)
    return 0


@given(VALUES)
def test_depth_is_that_of_the_value(value):
    assert json_depth(json.dumps(value).encode()) == depth_of(value)


@given(st.binary())
def test_depth_of_any_bytes(data):
    json_depth(data)


def test_depth_beyond_the_limit():
    assert json_depth(b"[" * 1_000_000) == MAX_JSON_DEPTH + 1
    assert json_depth(b'{"a":' * 200 + b"1" + b"}" * 200) == MAX_JSON_DEPTH + 1
