"""Answers to web pages of other origins, when the server was told to let them in."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["cors_headers", "preflight_headers"]

Headers = list[tuple[bytes, bytes]]


def cors_headers(origin: bytes, allowed: Sequence[str]) -> Headers:
    """What a browser wants to see before it shows an answer to a page of ``origin``."""
    if not origin or not allowed:
        return []
    name = origin.decode("latin-1")
    if "*" not in allowed and name not in allowed:
        return [(b"vary", b"origin")]
    return [
        (b"access-control-allow-origin", b"*" if "*" in allowed else origin),
        (b"access-control-expose-headers", b"*"),
        (b"vary", b"origin"),
    ]


def preflight_headers(asked: bytes) -> Headers:
    """Of the answer to OPTIONS, beside the above. ``asked``: headers that the page would send."""
    return [
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", asked or b"*"),
        (b"access-control-allow-private-network", b"true"),
        (b"access-control-max-age", b"600"),
    ]
