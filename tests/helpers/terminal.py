"""A command in a terminal of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time


class Terminal:
    """``grebe`` with these arguments, as if somebody sat before it.

    Attributes:
        text: what it has shown, without colours.
    """

    def __init__(self, *argv: str, **env: str) -> None:
        self._fd, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "grebe", *argv],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,  # so that Ctrl-C is a signal
            env={**os.environ, "TERM": "xterm", **env},
        )
        os.close(theirs)
        self._raw = b""
        self._seen = 0

    @property
    def text(self) -> str:
        plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", self._raw)
        return plain.decode("utf-8", "replace").replace("\r\n", "\n")

    def type(self, text: str) -> None:
        """Keys; ``\\x03`` is Ctrl-C, ``\\x04`` Ctrl-D."""
        os.write(self._fd, text.encode())

    def wait(self, pattern: str, within: float = 30.0) -> str:
        """Until it shows something new; gives what is new up to there."""
        end = time.monotonic() + within
        while not (found := re.search(pattern, self.text[self._seen :])):
            left = end - time.monotonic()
            shown = self.text[self._seen :]
            assert left > 0, f"no {pattern!r} in {within} s; there is {shown!r}"
            assert self._read(left), f"it ended without {pattern!r}: {shown!r}"
        new = self.text[self._seen : self._seen + found.end()]
        self._seen += found.end()
        return new

    def end(self, within: float = 20.0) -> int:
        """Its exit status, when it ends by itself."""
        end = time.monotonic() + within
        while self._read(max(end - time.monotonic(), 0)):
            assert time.monotonic() < end, f"it does not end: {self.text[self._seen :]!r}"
        return self.process.wait(timeout=within)

    def _read(self, within: float) -> bool:
        """False at the end."""
        if not select.select([self._fd], [], [], min(within, 0.5))[0]:
            return True
        try:
            part = os.read(self._fd, 1 << 16)
        except OSError:  # Linux says so when the last process has closed it
            return False
        self._raw += part
        return bool(part)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self._fd)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
