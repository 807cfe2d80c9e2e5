"""Who may send a request: API keys, names of this machine, web pages.

A server on the loopback address asks for no key, so two attacks from a browser remain. A page may
send requests without seeing the answers: they carry its Origin. A page's own domain may be made to
resolve to this machine: then Host is that domain.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from .errors import ApiError

__all__ = ["Guard"]

# Names that no domain on the internet can have.
LOCAL_NAMES = (
    "localhost",
    "host.docker.internal",
    "gateway.docker.internal",
    "host.containers.internal",
)

Headers = Sequence[tuple[bytes, bytes]]


class Guard:
    """Decides from a request's headers whether it is served, and who asks."""

    def __init__(
        self,
        api_keys: Sequence[str] = (),
        *,
        host: str = "127.0.0.1",
        allowed_hosts: Sequence[str] = (),
        cors: Sequence[str] = (),
    ) -> None:
        # Digests have one length, so comparing tells nothing of the key.
        self._keys = {
            _digest(key.encode()): _digest(b"owner:" + key.encode()).hex()[:16] for key in api_keys
        }
        self._hosts = {name.lower() for name in (*LOCAL_NAMES, host, *allowed_hosts)}
        own = socket.gethostname().lower()
        self._hosts |= {own, own.split(".")[0] + ".local"}
        self._cors = frozenset(cors)

    @property
    def needs_key(self) -> bool:
        """Whether requests must have one."""
        return bool(self._keys)

    def check_origin(self, headers: Headers) -> None:
        """Refuses web pages that are not ours.

        Raises:
            ApiError: 403.
        """
        host = _first(headers, b"host")
        origin = _first(headers, b"origin")
        if not self._keys and host and not self._known_host(host):
            raise ApiError(
                403,
                f"Host is {host[:200]!r}, which is no name of this machine; start the server with "
                "--allow-host NAME if it is one",
                kind="permission_error",
            )
        if origin and "*" not in self._cors and origin not in self._cors:
            # The page of the server itself. "null" is a sandboxed frame: never ours.
            if urlsplit(origin).netloc.lower() == host.lower() and host:
                return
            raise ApiError(
                403,
                f"web pages of {origin[:200]!r} may not call this server; start it with "
                "--cors ORIGIN if they may",
                kind="permission_error",
            )

    def owner(self, headers: Headers) -> str:
        """A name for the key that came with the request; "" when none is asked for.

        Raises:
            ApiError: 401.
        """
        if not self._keys:
            return ""
        given = [_first(headers, b"x-api-key"), _first(headers, b"api-key")]
        scheme, _, token = _first(headers, b"authorization").partition(" ")
        if scheme.lower() == "bearer":
            given.append(token.strip())
        owner = ""
        for key in given:
            digest = _digest(key.encode("latin-1"))
            for known, name in self._keys.items():  # all of them: no early end
                if hmac.compare_digest(digest, known):
                    owner = name
        if owner:
            return owner
        raise ApiError(
            401,
            "the API key is wrong"
            if any(given)
            else "an API key is needed: Authorization: Bearer KEY, or x-api-key",
            kind="authentication_error",
            code="invalid_api_key",
        )

    def _known_host(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name.rstrip(".") in self._hosts or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # an address needs no DNS that somebody could bend


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _first(headers: Headers, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")
