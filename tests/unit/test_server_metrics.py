"""What the server tells of its requests: usage, /metrics, the log. And what it never tells."""

from __future__ import annotations

import json
import logging
import re
import urllib.request

import pytest

from tests.helpers.live import asking, serving
from tests.helpers.wire import post

WORDS = " ".join(f"bird {n}" for n in range(100))
SAMPLE = re.compile(r'(grebe_\w+)(?:\{((?:\w+="[^"\\]*",?)*)\})? (\S+)')


def metrics(server) -> dict[str, float]:
    with urllib.request.urlopen(server.url + "/metrics") as answer:
        text = answer.read().decode()
    values: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in kinds, f"{name} twice"
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            found = SAMPLE.fullmatch(line)
            assert found is not None, line
            name, labels, value = found.groups()
            assert name in kinds, f"{name} without a type"
            assert (kinds[name] == "counter") == name.endswith("_total"), name
            values[f"{name}{{{labels}}}" if labels else name] = float(value)
    return values


def chat(*messages, **more):
    return {
        "messages": [{"role": role, "content": text} for role, text in messages],
        "thinking": {"type": "disabled"},
        **more,
    }


def ask(server, body) -> dict:
    status, _, data = post(server, "/v1/chat/completions", body)
    assert status == 200, data
    return json.loads(data)


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "grebe.server")
    return lambda: [r.getMessage() for r in caplog.records if " POST " in r.getMessage()]


def test_a_line_of_the_log_and_the_counters_say_what_a_turn_cost(log):
    with serving(
        {"a": {"steps": [{"content": "quack"}]}, "b": {"steps": [{"content": "q"}]}}
    ) as server:
        first = ask(server, chat(("user", asking("a", f"{WORDS} secret-word"))))
        other = ask(server, chat(("user", asking("a", f"{WORDS} another"))))
        raw = {"prompt": "secret-word", "max_tokens": 3, "stream": True}
        post(server, "/v1/completions", raw)
        post(server, "/v1/messages", {"messages": "secret-word"})
        values = metrics(server)
    lines = log()
    usage, used = first["usage"], other["usage"]
    n, cached = usage["prompt_tokens"], used["prompt_tokens_details"]["cached_tokens"]
    assert re.fullmatch(
        rf"req_\w+ POST /v1/chat/completions 200 \d+\.\d+ s prompt={n} cached=0 "
        rf"completion={usage['completion_tokens']} miss=cold@0 end=stop scripted=a#0",
        lines[0],
    )
    at = used["prompt_cache_miss_at"]
    assert used["prompt_cache_miss_reason"] == "diverged"
    assert at - 128 < cached <= at
    assert f"cached={cached} " in lines[1]
    assert f" miss=diverged@{at} " in lines[1]
    assert re.search(r" cached=0 completion=\d miss=cold@0 end=(length|stop)$", lines[2])
    assert re.fullmatch(r"req_\w+ POST /v1/messages 400 \d+\.\d+ s", lines[3])
    assert "secret" not in "".join(lines)

    assert values['grebe_requests_accepted_total{api="chat"}'] == 2
    assert values['grebe_requests_accepted_total{api="completions"}'] == 1
    assert values['grebe_prefix_misses_total{reason="diverged"}'] == 1
    uncached = used["prompt_tokens"] - cached
    assert values['grebe_uncached_tokens_total{miss="diverged"}'] == uncached
    prompt, known = values["grebe_prompt_tokens_total"], values["grebe_cached_tokens_total"]
    by_reason = [v for k, v in values.items() if k.startswith("grebe_uncached_tokens_total")]
    assert sum(by_reason) == prompt - known == values["grebe_prefilled_tokens_total"]
    assert values['grebe_http_requests_total{route="/v1/chat/completions",status="200"}'] == 2
    assert values['grebe_http_requests_total{route="/v1/messages",status="400"}'] == 1


def test_messages_that_are_put_back_as_they_were_sampled_are_counted():
    with serving({"*": {"steps": [{"content": "quack"}]}}) as server:
        asked = chat(("user", "one"))
        answer = ask(server, asked)["choices"][0]["message"]["content"]
        assert answer == "quack"
        ask(server, chat(("user", "one"), ("assistant", answer), ("user", "two")))
        values = metrics(server)
    assert values["grebe_messages_replayed_total"] == 1


def test_a_client_that_leaves_and_an_engine_that_fails_are_told_apart(log, monkeypatch):
    from tests.helpers.serving import connect, request_bytes

    script = {"a": {"steps": [{"content": "word " * 500, "token_delay_s": 0.02}]}}
    with serving(script) as server:
        body = chat(("user", asking("a")), stream=True)
        sock = connect(server.port)
        sock.sendall(request_bytes("/v1/chat/completions", json.dumps(body).encode()))
        while b"word" not in sock.recv(4096):
            pass
        sock.close()
        worker = server.app._stack.worker
        while worker.stats()["n_running"]:
            pass

        def broken(*args, **kwargs):
            raise RuntimeError("a fault")

        monkeypatch.setattr(worker, "model", _With(worker.model, step=broken))
        post(server, "/v1/chat/completions", chat(("user", "x")))
    lines = log()
    assert re.search(r" 200 .* completion=[1-9]\d* miss=cold@0 end=gone scripted=a#0$", lines[0])
    assert re.search(r" 500 .* completion=0 miss=cold@2 end=failed scripted=\*#0$", lines[1])


class _With:
    """An object with other attributes."""

    def __init__(self, base, **attributes):
        self._base = base
        self.__dict__.update(attributes)

    def __getattr__(self, name):
        return getattr(self._base, name)


def test_a_short_conversation_is_read_once():
    with serving({"*": {"steps": [{"content": "quack, quack"}]}}) as server:
        messages = [("user", "Hello, bird")]
        known = 0
        for turn in range(4):
            answer = ask(server, chat(*messages))
            usage = answer["usage"]
            assert usage["prompt_tokens"] < 128
            assert usage["prompt_tokens_details"]["cached_tokens"] == known, turn
            assert ("prompt_cache_miss_reason" in usage) == (turn == 0)
            # The last token is sampled and not read; with the next prompt it is.
            known = usage["total_tokens"] - 1
            messages += [("assistant", answer["choices"][0]["message"]["content"])]
            messages += [("user", "And then?")]


def test_a_short_prompt_that_is_repeated_says_why_it_is_read_again():
    """The session is beyond it, and goes back to multiples of 128 tokens only."""
    with serving({"*": {"steps": [{"content": "quack"}]}}) as server:
        asked = chat(("user", "Hello, bird"))
        ask(server, asked)
        usage = ask(server, asked)["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        assert usage["prompt_cache_miss_reason"] == "rewound"
        assert usage["prompt_cache_miss_at"] == usage["prompt_tokens"]
        long = chat(("user", WORDS))
        ask(server, long)
        usage = ask(server, long)["usage"]
        assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] <= 128
        assert "prompt_cache_miss_reason" not in usage
