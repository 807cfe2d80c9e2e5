"""A headless Chromium, led through the pipe of its debugging protocol."""

from __future__ import annotations

import fcntl
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Nothing but this machine: what the page would load from elsewhere fails.
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
ANSWER_S = 30.0
# The protocol is spoken on descriptors 3 and 4.
_LAUNCH = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"


def find() -> str:
    """The program. Without one a test is skipped, unless GREBE_TEST_BROWSER asks for one, as CI does."""
    wanted = os.environ.get("GREBE_TEST_BROWSER")
    for name in (wanted,) if wanted else NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    if wanted:
        pytest.fail(f"GREBE_TEST_BROWSER is {wanted}, which is not there")
    pytest.skip(f"no browser: none of {', '.join(NAMES)}")


class Browser:
    """The process. Pages have their own cookies and storage."""

    def __init__(self) -> None:
        program = find()
        self._folder = tempfile.TemporaryDirectory(
            prefix="grebe-tests-", ignore_cleanup_errors=True
        )
        theirs_in, ours_out = _pipe()
        ours_in, theirs_out = _pipe()
        argv = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-extensions",
            OFFLINE, f"--user-data-dir={self._folder.name}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out), *argv],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._out, self._in = ours_out, ours_in
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._last_id = 0
        self._pages: dict[str, Page] = {}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """What the browser answers; AssertionError if that is an error or nothing."""
        self._last_id += 1
        answers = self._answers[self._last_id] = queue.Queue()
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        try:
            answer = answers.get(timeout=ANSWER_S)
        except queue.Empty:
            raise AssertionError(f"the browser does not answer {method}") from None
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def page(self, url: str) -> Page:
        """A page of its own at ``url``."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)[
            "targetId"
        ]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Runtime", "Log", "Network", "Page"):
            page.call(f"{domain}.enable")
        page.size(1200, 800)
        page.call("Page.navigate", url=url)
        page.wait("location.href != 'about:blank' && document.readyState == 'complete'")
        return page

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        os.close(self._out)
        os.close(self._in)
        self._folder.cleanup()

    def _read(self) -> None:
        rest = b""
        while part := os.read(self._in, 1 << 16):
            *messages, rest = (rest + part).split(b"\0")
            for data in messages:
                message = json.loads(data)
                if "id" in message:
                    self._answers.pop(message["id"]).put(message)
                elif message.get("sessionId") in self._pages:
                    self._pages[message["sessionId"]].events.append(message)


class Page:
    """A tab.

    Attributes:
        events: what the browser told of it.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> Any:
        return self._browser.call(method, self._session, **params)

    def size(self, width: int, height: int) -> None:
        """Of what is seen."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )  # fmt: skip

    def js(self, code: str) -> Any:
        """The value of an expression."""
        result = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, code: str, within: float = 20.0) -> None:
        """Until an expression is true."""
        end = time.monotonic() + within
        while not self.js(f"Boolean({code})"):
            assert time.monotonic() < end, f"not within {within} s: {code}; {self.text()[-500:]!r}"
            time.sleep(0.03)

    def text(self, selector: str = "body") -> str:
        """What a person sees there."""
        return str(self.js(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        """With the mouse, in the middle."""
        x, y = self.js(
            f"(() => {{ const e = document.querySelector({selector!r});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """With the keyboard, into a field."""
        self.click(selector)
        self.call("Input.insertText", text=text)

    def enter(self) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )  # fmt: skip

    @property
    def urls(self) -> list[str]:
        """All that was asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    @property
    def complaints(self) -> list[str]:
        """Exceptions and errors of the console, refused resources among them."""
        found = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found


def _pipe() -> tuple[int, int]:
    """Numbers beyond those that the browser reads and writes."""
    ends = []
    for fd in os.pipe():
        ends.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(fd)
    return ends[0], ends[1]
