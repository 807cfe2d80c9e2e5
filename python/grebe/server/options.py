"""What a server is told when it starts, checked."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from ..chat.messages import Generation
from ..checks import shown
from ..errors import InvalidArgumentError

__all__ = ["ServeOptions", "is_loopback"]

# No option means more, and the engine's own units are larger.
_MOST = 2**40
_LEAST = {
    "n_ctx": 2,  # a prompt and an answer
    "cache_gb": 0.02,
    "ram_gb": 0,
    "max_waiting": 0,
    "max_running": 1,
    "max_body_bytes": 1024,
    "shutdown_s": 0,
}


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of :func:`grebe.serve`, ``grebe serve`` and :func:`~grebe.server.app.make_app`.

    Attributes:
        host: address to listen on.
        port: 0: any free one.
        name: what the model is called in answers; None: as its file says.
        n_ctx: tokens of context of each conversation; None: as the model was made for, at most
            131,072.
        cache_dir: directory of the KV store and of the replay table; None: nothing is kept.
        cache_gb: bounds the KV store.
        ram_gb: bounds what the KV store keeps in memory.
        api_keys: one of them must come with each request; empty: none is asked for.
        insecure: allow an address that others can reach without an API key.
        allowed_hosts: names that the Host header may have beside those of this machine.
        cors: origins of web pages that may call the server; "*": all.
        generation: which checkpoint the prompts are for; None: as the model's file says.
        official_sampling: ignore temperature and top_p while thinking, as DeepSeek's API does.
        scripted_replies: file of forced outputs, for tests.
        trace: log prompts and outputs.
        max_waiting: requests that may wait for the engine.
        max_running: requests that are computed together.
        max_body_bytes: of one request.
        shutdown_s: how long running requests may go on when the server stops.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    n_ctx: int | None = None
    cache_dir: str | os.PathLike[str] | None = None
    cache_gb: float = 32.0
    ram_gb: float = 1.0
    api_keys: tuple[str, ...] = ()
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    generation: Generation | None = None
    official_sampling: bool = False
    scripted_replies: str | os.PathLike[str] | None = None
    trace: bool = False
    max_waiting: int = 64
    max_running: int = 16
    max_body_bytes: int = 64 << 20
    shutdown_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidArgumentError(f"port is {self.port}; 0 to 65535 is expected")
        if self.generation not in (None, "0731", "may"):
            raise InvalidArgumentError(f"generation is {shown(self.generation)}; 0731 or may")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= _MOST:
                raise InvalidArgumentError(
                    f"{name} is {value}; a number from {least:g} to 2^40 is expected"
                )
        if any(not key or not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise InvalidArgumentError("an API key must be printable ASCII and not empty")
        if self.scripted_replies is not None and not is_loopback(self.host):
            raise InvalidArgumentError(
                f"scripted replies are for tests on this machine; host is {self.host}"
            )
        if not is_loopback(self.host) and not self.api_keys and not self.insecure:
            raise InvalidArgumentError(
                f"host {self.host} can be reached from other machines: give an API key "
                "(--api-key, or GREBE_API_KEY), or --insecure if everybody there may use the model"
            )

    @property
    def replay_dir(self) -> Path | None:
        """Where the replay table lives."""
        return None if self.cache_dir is None else Path(self.cache_dir) / "replay"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address.

    Example:
        >>> is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
