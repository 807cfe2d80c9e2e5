"""Completions without the chat protocol, and the tokenizer's routes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from grebe.server.run import Server, serve

from tests.helpers import models
from tests.helpers.wire import post, sse_events

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(models.load("embedded"), n_ctx=2048) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def ids(server: Server, text: str) -> list[int]:
    _, _, data = post(server, "/tokenize", {"content": text})
    return json.loads(data)["tokens"]


def test_text(client: openai.OpenAI, server: Server):
    made = client.completions.create(model="m", prompt=PROMPT, temperature=0, max_tokens=8)
    assert made.object == "text_completion"
    assert made.id.startswith("cmpl-")
    (choice,) = made.choices
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert made.usage is not None
    assert made.usage.completion_tokens == 8
    assert made.usage.prompt_tokens == 1 + len(ids(server, PROMPT))
    bare = models.load("embedded").complete(PROMPT, max_tokens=8)
    assert choice.text == bare.text


def test_tokens_and_lists_of_one(client: openai.OpenAI, server: Server):
    tokens = [0, *ids(server, PROMPT)]
    texts = {
        client.completions.create(model="m", prompt=prompt, temperature=0, max_tokens=8)
        .choices[0]
        .text
        for prompt in (PROMPT, [PROMPT], tokens, [tokens])
    }
    assert len(texts) == 1


def test_sixteen_tokens_when_nothing_is_said(client: openai.OpenAI):
    made = client.completions.create(model="m", prompt=PROMPT)
    assert made.usage is not None
    assert made.usage.completion_tokens <= 16


def test_stream_equals_whole(client: openai.OpenAI):
    options: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12, "echo": True}
    whole = client.completions.create(model="m", **options)
    with client.completions.create(
        model="m", stream=True, stream_options={"include_usage": True}, **options
    ) as stream:
        *chunks, last = stream
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.usage is not None
    assert last.usage.completion_tokens == 12
    assert last.choices == []


def test_bytes_of_a_stream(server: Server):
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 3, "stream": True, "logprobs": 1}
    status, _, data = post(server, "/v1/completions", body)
    assert status == 200
    *chunks, done = [event for _, event in sse_events(data)]
    assert done == "[DONE]"
    tokens: list[str] = []
    for chunk in chunks:
        assert chunk["object"] == "text_completion"
        assert "usage" not in chunk
        (choice,) = chunk["choices"]
        assert list(choice) == ["index", "text", "logprobs", "finish_reason"]
        if choice["logprobs"]:
            tokens += choice["logprobs"]["tokens"]
    assert "".join(tokens) == "".join(chunk["choices"][0]["text"] for chunk in chunks)


def test_stop(client: openai.OpenAI):
    whole = client.completions.create(model="m", prompt=PROMPT, temperature=0, max_tokens=12)
    text = whole.choices[0].text
    stop = text[5:8]
    cut = client.completions.create(
        model="m", prompt=PROMPT, temperature=0, max_tokens=12, stop=[stop], logprobs=0
    )
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_logprobs_of_echoed_prompt(client: openai.OpenAI, server: Server):
    made = client.completions.create(
        model="m", prompt=PROMPT, temperature=0, max_tokens=4, echo=True, logprobs=2
    )
    (choice,) = made.choices
    scores = choice.logprobs
    assert scores is not None
    assert scores.tokens is not None
    assert scores.token_logprobs is not None
    assert scores.top_logprobs is not None
    assert scores.text_offset is not None
    assert "".join(scores.tokens) == choice.text
    assert len(scores.tokens) == len(ids(server, PROMPT)) + 4
    for token, logprob, top, offset in zip(
        scores.tokens, scores.token_logprobs, scores.top_logprobs, scores.text_offset, strict=True
    ):
        assert logprob <= 0
        assert 1 <= len(top) <= 2
        assert choice.text[offset:].startswith(token)


def test_only_the_prompts_logprobs(client: openai.OpenAI, server: Server):
    made = client.completions.create(
        model="m", prompt=[0, *ids(server, PROMPT)], max_tokens=0, echo=True, logprobs=1
    )
    scores = made.choices[0].logprobs
    assert scores is not None
    assert scores.tokens is not None
    assert scores.token_logprobs is not None
    assert "".join(scores.tokens[1:]) == PROMPT
    assert scores.token_logprobs[0] is None
    assert made.usage is not None
    assert made.usage.completion_tokens == 0


def test_suffix_is_filled_in(client: openai.OpenAI, server: Server):
    made = client.completions.create(
        model="m", prompt="def f(x):\n", suffix="\n    return y", max_tokens=4
    )
    assert made.usage is not None
    parts = len(ids(server, "def f(x):\n")) + len(ids(server, "\n    return y"))
    assert made.usage.prompt_tokens == parts + 4  # begin of text, begin, hole, end


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": [PROMPT, PROMPT]}, "prompt"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"n": 2}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": 1, "echo": True, "stream": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_refused(client: openai.OpenAI, change: dict[str, Any], param: str):
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", body={"prompt": PROMPT, **change}, cast_to=object)
    assert caught.value.param == param


def test_overflow(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="m", prompt="word " * 4000)
    assert caught.value.code == "context_length_exceeded"


def test_tokenize_and_back(server: Server):
    text = "Wann fährt der Zug? 🧵 <think>"
    status, _, data = post(server, "/tokenize", {"prompt": text, "add_special_tokens": True})
    assert status == 200
    body = json.loads(data)
    assert body["tokens"][0] == 0
    assert body["count"] == len(body["tokens"])
    _, _, data = post(server, "/detokenize", {"tokens": body["tokens"][1:]})
    assert json.loads(data)["content"] == text
    _, _, data = post(server, "/tokenize", {"content": text, "parse_special": False})
    plain = json.loads(data)["tokens"]
    assert plain != body["tokens"][1:]
    _, _, data = post(server, "/tokenize", {"content": text, "with_pieces": True})
    pieces = json.loads(data)["tokens"]
    assert [piece["id"] for piece in pieces] == body["tokens"][1:]
    assert post(server, "/detokenize", {"tokens": [8192]})[0] == 400
    assert post(server, "/tokenize", {})[0] == 400


def test_tokenize_a_conversation(server: Server):
    messages = [{"role": "user", "content": "Hello"}]
    _, _, data = post(server, "/tokenize", {"messages": messages, "reasoning_effort": "none"})
    body = {"messages": messages, "reasoning_effort": "none", "max_tokens": 1}
    _, _, answer = post(server, "/v1/chat/completions", body)
    assert json.loads(data)["count"] == json.loads(answer)["usage"]["prompt_tokens"]
