"""The page at ``/``: status and chat. Plain files, nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from starlette.responses import Response

__all__ = ["PATHS", "response"]

_FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/chat.js": ("chat.js", "text/javascript"),
    "/page/page.css": ("page.css", "text/css"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}
PATHS = frozenset(_FILES)

# The page shows what a model wrote: it must not be able to do anything.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def response(path: str) -> Response:
    """One of the page's files."""
    name, media_type = _FILES[path]
    return Response(_content(name), media_type=media_type, headers=_HEADERS)


@cache
def _content(name: str) -> bytes:
    return (Path(__file__).parent / name).read_bytes()
