"""The server inside other programs: notebooks, and applications that mount it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import threading
import urllib.request

import grebe
import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from tests.helpers import models

CHAT = {
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 4,
    "temperature": 0,
    "thinking": {"type": "disabled"},
}


def model() -> grebe.Model:
    return models.load("embedded")


def test_in_a_notebook():
    """Its main thread runs an event loop, in which the server neither runs nor blocks."""

    async def cells() -> None:
        server = grebe.serve(model(), port=0, n_ctx=512)
        assert server.port > 0
        assert repr(server) == f"<grebe.Server {server.url}: ok>"
        async with httpx.AsyncClient(base_url=server.url) as client:
            answers = await asyncio.gather(
                *(client.post("/v1/chat/completions", json=CHAT) for _ in range(3))
            )
            texts = {a.json()["choices"][0]["message"]["content"] for a in answers}
            assert len(texts) == 1
            async with client.stream(
                "POST", "/v1/chat/completions", json={**CHAT, "stream": True}
            ) as stream:
                lines = [line async for line in stream.aiter_lines() if line]
            assert lines[-1] == "data: [DONE]"
        server.close()
        server.close()  # cells are run twice
        with grebe.serve(model()) as other:
            assert (await asyncio.to_thread(urllib.request.urlopen, other.url + "/health")).read()

    before = {t.name for t in threading.enumerate()}
    asyncio.run(cells())
    assert {t.name for t in threading.enumerate() if "grebe" in t.name} <= before


def test_two_servers_of_one_model():
    with grebe.serve(model()) as one, grebe.serve(model()) as other:
        assert one.port != other.port
        answers = [httpx.post(s.url + "/v1/chat/completions", json=CHAT) for s in (one, other)]
        first, second = (a.json()["choices"][0]["message"]["content"] for a in answers)
        assert first == second
    assert model().complete("A", max_tokens=1).finish_reason  # it was ours, and is open


def test_a_script_that_forgets_to_close_ends():
    code = "import grebe; s = grebe.serve(); print(s.url)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("http://127.0.0.1:")


def test_what_cannot_be_served_is_said_where_it_was_asked():
    with pytest.raises(grebe.GrebeError, match=r"none\.gguf"):
        grebe.serve("none.gguf")
    with pytest.raises(grebe.InvalidArgumentError, match="there is no option prot"):
        grebe.serve(model(), prot=1)
    with grebe.serve(model()) as server, pytest.raises(grebe.StorageError, match="in use"):
        grebe.serve(model(), port=server.port)
    assert not [t for t in threading.enumerate() if t.name.startswith("grebe-http")]


# ------------------------------------------------------------------ mounted


class Client:
    """Of an application that runs in the loop of the test, lifespan included."""

    def __init__(self, app) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._app = app
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=True),
            base_url="http://localhost",
        )

    async def __aenter__(self) -> httpx.AsyncClient:
        if isinstance(self._app, Starlette):
            await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))
        return self.http

    async def __aexit__(self, *error: object) -> None:
        await self.http.aclose()
        await self._stack.aclose()


def outer(closed: list[str], **options) -> Starlette:
    """An application with a route of its own, and the model's under a prefix."""
    inner = grebe.make_app(model(), **options)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        await asyncio.to_thread(inner.close)
        closed.append(inner.state)

    async def hello(request):
        return PlainTextResponse("hello")

    return Starlette(routes=[Route("/hello", hello), Mount("/llm", inner)], lifespan=lifespan)


def test_mounted_in_another_application(caplog):
    caplog.set_level(logging.INFO, "grebe.server")
    closed: list[str] = []

    async def use() -> None:
        async with Client(outer(closed, n_ctx=512)) as client:
            assert (await client.get("/hello")).text == "hello"
            answer = await client.post("/llm/v1/chat/completions", json=CHAT)
            assert answer.json()["object"] == "chat.completion"
            assert answer.headers["x-request-id"].startswith("req_")
            assert (await client.get("/llm/health")).json() == {"status": "ok"}
            assert (await client.get("/llm/v1/models")).json()["data"][0]["id"] == "grebe-nano"
            page = await client.get("/llm/")
            assert page.headers["content-type"].startswith("text/html")
            assert 'src="page/' in page.text  # relative: it works under any prefix
            assert (await client.get("/llm/page/page.js")).status_code == 200
            for api in ("chat/completions", "messages", "responses"):
                body = {**CHAT, "input": "Hello", "stream": True, "max_output_tokens": 4}
                text = (await client.post(f"/llm/v1/{api}", json=body)).text
                assert text.startswith(("data: {", "event: "))

            # Errors keep the shape of their API, and what is not there is not ours.
            error = await client.post("/llm/v1/messages", json={"messages": 5})
            assert error.status_code == 400
            assert error.json()["type"] == "error"
            assert (await client.get("/llm/v1/messages")).status_code == 405
            error = await client.get("/llm/chat/completions")
            assert error.status_code == 404
            assert "there is /v1/chat/completions" in error.json()["error"]["message"]
            assert (await client.get("/v1/models")).status_code == 404
            text = (await client.get("/llm/metrics")).text
            assert 'route="/v1/chat/completions",status="200"} 2' in text

    asyncio.run(use())
    assert closed == ["the server is shutting down"]
    assert any("/llm/v1/messages 400" in record.getMessage() for record in caplog.records)


def test_mounted_and_stopped_in_the_middle():
    closed: list[str] = []

    async def use() -> str:
        body = {**CHAT, "max_tokens": 5000, "temperature": 2, "seed": 3, "stream": True}
        async with Client(outer(closed, shutdown_s=0.2)) as client:
            task = asyncio.create_task(client.post("/llm/v1/chat/completions", json=body))
            await asyncio.sleep(0.3)
        return (await task).text

    text = asyncio.run(use())
    last = [line for line in text.split("\n\n") if line][-1]
    assert last == "data: [DONE]" or "error" in json.loads(last[6:])
    assert closed


def test_a_mounted_application_that_asks_for_keys():
    async def use() -> None:
        async with Client(outer([], api_keys=("secret",))) as client:
            refused = await client.post("/llm/v1/messages", json={})
            assert refused.status_code == 401
            assert refused.json()["error"]["type"] == "authentication_error"
            taken = await client.get("/llm/v1/models", headers={"x-api-key": "secret"})
            assert taken.status_code == 200
            assert (await client.get("/llm/health")).status_code == 200  # needs none

    asyncio.run(use())


def test_as_an_application_of_its_own():
    """As uvicorn runs it: its lifespan closes it."""

    async def use() -> list[str]:
        app = grebe.make_app(model())
        inbox: asyncio.Queue = asyncio.Queue()
        sent: list[str] = []

        async def send(message):
            sent.append(message["type"])

        running = asyncio.create_task(app({"type": "lifespan"}, inbox.get, send))
        await inbox.put({"type": "lifespan.startup"})
        await asyncio.sleep(0)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
            await inbox.put({"type": "lifespan.shutdown"})
            await running
            gone = await client.post("/v1/chat/completions", json=CHAT)
            assert gone.status_code == 503
            assert (await client.get("/health")).status_code == 503
        return sent

    assert asyncio.run(use()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
