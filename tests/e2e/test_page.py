"""The server's page in a real browser that reaches nothing but the server."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.helpers.browser import Browser, Page
from tests.helpers.live import asking, serving

ANSWER = "one two three four five six seven <img src=x onerror=\"document.title='bad'\"> **end**"
REPLIES = {
    "plain": {
        "steps": [{"reasoning": "let me think about it", "content": ANSWER, "token_delay_s": 0.03}]
    },
    "slow": {"steps": [{"content": "word " * 400, "token_delay_s": 0.03}]},
    "prompt": {"steps": [{"content": "read", "prefill_delay_s": 4.0}]},
}
LONG = " ".join(f"bird {n}" for n in range(500))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    running = Browser()
    yield running
    running.close()


def ready(browser: Browser, url: str) -> Page:
    page = browser.page(url + "/")
    page.wait("document.getElementById('state').textContent == 'ready'")
    return page


def answer(page: Page) -> str:
    """Of the newest answer: content alone."""
    return page.js(
        "[...document.querySelectorAll('.message.assistant')].at(-1)?.children[1].textContent ?? ''"
    )


def ask(page: Page, text: str) -> None:
    page.type("#text", text)
    page.click("#send")


IDLE = "document.getElementById('stop').hidden"
BUSY = "!document.getElementById('stop').hidden"


def test_the_page_needs_nothing_from_elsewhere(browser):
    with serving(REPLIES) as server:
        page = ready(browser, server.url)
        for word in (
            "grebe-nano",
            "ready",
            "Sessions",
            "KV store",
            "decode",
            "grebe serve --cache-dir",
        ):
            assert word.lower() in page.text().lower()  # headings are in capitals
        assert page.js("getComputedStyle(document.querySelector('main')).display") == "flex"
        page.wait("performance.getEntriesByType('resource').length > 4")
        assert page.urls
        assert all(url.startswith(server.url) for url in page.urls)
        assert page.complaints == []


def test_a_chat_streams_and_shows_text_as_text(browser):
    with serving(REPLIES) as server:
        page = ready(browser, server.url)
        page.js(
            "window.seen = new Set(); new MutationObserver(() => { for (const m of document"
            ".querySelectorAll('.message.assistant')) seen.add(m.children[1].textContent.length) })"
            ".observe(document.getElementById('messages'), "
            "{subtree: true, childList: true, characterData: true}); 0"
        )
        ask(page, asking("plain"))
        page.wait(BUSY)
        assert page.text(".message.user").startswith("Please.")
        page.wait(IDLE)
        assert answer(page) == ANSWER
        assert page.js("seen.size") > 5  # it came in pieces
        assert page.js("document.querySelectorAll('.message img, .message strong').length") == 0
        assert page.js("document.title") == "grebe"
        assert "let me think" in page.js("document.querySelector('details').textContent")
        note = page.text(".message.assistant .note")
        assert "0 of them known" in note
        assert "tok/s" in note

        page.type("#text", asking("plain", "Again."))
        page.enter()
        page.wait("document.querySelectorAll('.message.assistant').length == 2")
        page.wait(f"{IDLE} && document.querySelectorAll('.note')[1].textContent")
        known = page.js(
            "document.querySelectorAll('.note')[1].textContent.match(/, (\\d+) of them/)[1]"
        )
        assert int(known) > 0
        page.wait("document.querySelectorAll('#sessions tbody tr').length >= 1")
        assert page.complaints == []

        page.click("#clear")
        assert page.js("document.querySelectorAll('.message').length") == 0


def test_what_the_server_does_is_seen(browser):
    with serving(REPLIES) as server:
        page = ready(browser, server.url)
        ask(page, asking("prompt", LONG))
        page.wait("document.querySelector('#running progress')")
        assert (
            0
            <= page.js("document.querySelector('#running progress').value")
            < page.js("document.querySelector('#running progress').max")
        )
        assert "reading " in page.text("#running")
        page.wait(IDLE)
        ask(page, asking("slow"))
        page.wait("document.querySelector('#running').innerText.startsWith('writing')")
        page.wait("parseFloat(document.querySelector('#now dd').innerText) > 1")  # tokens a second
        assert "tok/s" in page.text("#now")
        page.click("#stop")
        page.wait(IDLE)
        assert "stopped" in page.text("#messages")
        page.wait("document.querySelector('#running').innerText == 'none'")
        stats = server.app._stack.stats()
        assert stats["n_running"] == 0
        assert stats["finished"] == {"stop": 1, "cancelled": 1}
        page.wait("/requests\\n2/.test(document.querySelector('#totals').innerText)")
        assert page.complaints == []


def test_a_small_window(browser):
    """What is written moves on; the field and the button that stops it stay where they are."""
    with serving(REPLIES) as server:
        page = ready(browser, server.url)
        page.size(400, 500)
        ask(page, asking("slow", LONG))
        page.wait("document.getElementById('messages').scrollTop > 100")
        page.wait("document.querySelector('.assistant').children[1].textContent.length > 200")
        page.js("document.getElementById('messages').scrollTop = 0")
        page.wait("document.querySelector('.assistant').children[1].textContent.length > 400")
        assert page.js("document.getElementById('messages').scrollTop") == 0
        page.click("#stop")
        page.wait(IDLE)
        assert page.js("document.documentElement.scrollWidth") <= 400


def test_errors_are_shown(browser):
    with serving(REPLIES, n_ctx=64) as server:
        page = ready(browser, server.url)
        ask(page, LONG)
        page.wait("document.querySelector('.note.error')")
        assert "maximum context length is 64 tokens" in page.text(".note.error")
        page.wait(IDLE)
    page.wait("document.getElementById('state').textContent == 'no connection'")


def test_a_server_with_a_key_asks_for_it(browser):
    with serving(REPLIES, api_keys=("secret",)) as server:
        page = browser.page(server.url + "/")
        page.wait("!document.getElementById('key-form').hidden")
        page.type("#key", "wrong")
        page.enter()
        time.sleep(0.3)
        page.wait("!document.getElementById('key-form').hidden")
        page.js("document.getElementById('key').value = ''; 0")
        page.type("#key", "secret")
        page.enter()
        page.wait("document.getElementById('state').textContent == 'ready'")
        ask(page, asking("plain"))
        page.wait(f"{BUSY} || document.querySelector('.note')?.textContent")
        page.wait(IDLE)
        assert answer(page) == ANSWER


def test_the_kv_store_is_seen(browser, tmp_path):
    with serving(REPLIES, cache_dir=tmp_path) as server:
        page = ready(browser, server.url)
        assert "on disk" in page.text("#cache")
        ask(page, asking("plain", LONG))
        page.wait(f"{BUSY} || document.querySelector('.note')?.textContent")
        page.wait(IDLE)
        page.wait("/found\\n0 of 1/.test(document.querySelector('#cache').innerText)")
        assert page.complaints == []


def test_pages_of_others_cannot_use_the_server(browser):
    """As the browser enforces it, not as we imagine that it does."""
    with serving(REPLIES) as server, serving(REPLIES) as other:
        page = ready(browser, other.url)
        page.call("Page.setBypassCSP", enabled=True)
        page.call("Page.reload")
        page.wait("document.getElementById('state')?.textContent == 'ready'")
        code = f"fetch({server.url + '/v1/models'!r}).then(r => 'let in', e => 'refused')"
        assert page.js(code) == "refused"
        simple = (
            f"fetch({server.url + '/v1/chat/completions'!r}, {{method: 'POST', mode: 'no-cors', "
            'body: \'{"messages": [{"role": "user", "content": "x"}]}\'}).then(r => r.type)'
        )
        assert page.js(simple) == "opaque"  # sent; the page does not see the answer
        assert server.app._stack.stats()["jobs"] == 0
    with serving(REPLIES, cors=(other.url,)) as server, serving(REPLIES, port=other.port) as again:
        page = ready(browser, again.url)
        page.call("Page.setBypassCSP", enabled=True)
        page.call("Page.reload")
        page.wait("document.getElementById('state')?.textContent == 'ready'")
        code = (
            f"fetch({server.url + '/v1/chat/completions'!r}, {{method: 'POST', headers: "
            "{'content-type': 'application/json', 'authorization': 'Bearer x'}, "
            'body: \'{"messages": [{"role": "user", "content": "x"}]}\'})'
            ".then(r => r.json()).then(a => a.object)"
        )
        assert page.js(code) == "chat.completion"
