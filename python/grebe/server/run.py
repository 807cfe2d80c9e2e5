"""A server in this process: in a thread for notebooks and tests, or in the main one."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..model import Model
from .app import App
from .http import HttpServer, bind
from .options import ServeOptions

__all__ = ["Server", "serve"]

log = logging.getLogger("grebe.server")

# How long answers may still take to leave when the engine has stopped.
LAST_WORDS_S = 3.0


class Server:
    """A running server. Made by :func:`serve`."""

    def __init__(self, load: Callable[[], tuple[Model, bool]], options: ServeOptions) -> None:
        self.options = options
        self.app = App(options)
        self._load = load
        self._socket = bind(options.host, options.port)
        self.port: int = self._socket.getsockname()[1]
        self._http = HttpServer(self.app, self._stop, options.shutdown_s + LAST_WORDS_S)
        self._loaded = threading.Event()
        self._lock = threading.Lock()
        self._stopping = False
        self._error: Exception | None = None
        self._loader = threading.Thread(target=self._load_model, name="grebe-load", daemon=True)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens: ``http://127.0.0.1:8000``. An OpenAI client wants ``/v1`` after it."""
        host = self.options.host.strip("[]")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def start(self) -> Server:
        """Serves from a thread of its own."""
        self._loader.start()
        self._thread = threading.Thread(target=self._serve, name="grebe-http", daemon=True)
        self._thread.start()
        return self

    def run(self) -> None:
        """Serves until a signal comes; in the main thread.

        Raises:
            GrebeError: the model could not be loaded.
        """
        self._loader.start()
        self._serve()
        self._raise()

    def wait_ready(self, timeout_s: float | None = None) -> Server:
        """Returns when the model is loaded.

        Raises:
            GrebeError: it could not be.
            TimeoutError: it takes longer.
        """
        if not self._loaded.wait(timeout_s):
            raise TimeoutError(f"the model was not loaded in {timeout_s} s")
        self._raise()
        return self

    def close(self) -> None:
        """Stops in good order: running answers get some seconds, anchors are saved."""
        self._http.should_exit = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<grebe.Server {self.url}: {self.app.state}>"

    # ---------------------------------------------------------------- threads

    def _serve(self) -> None:
        try:
            self._http.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def _load_model(self) -> None:
        try:
            model, owned = self._load()
            with self._lock:
                if self._stopping:
                    if owned:
                        model.close()
                    return
                self.app.attach(model, owned=owned)
        except Exception as error:
            self._error = error
            self.app.refuse(f"the model could not be loaded: {error}")
            self._http.should_exit = True
        finally:
            self._loaded.set()

    async def _stop(self) -> None:
        self._stopping = True
        self.app.refuse("the server is shutting down")

        def close() -> None:
            with self._lock:
                self.app.close()

        await asyncio.get_running_loop().run_in_executor(None, close)

    def _raise(self) -> None:
        if self._error is not None:
            self.close()
            raise self._error


def serve(
    model: Model | str | os.PathLike[str] | None = None,
    *,
    port: int = 0,
    wait: bool = True,
    backend: str = "auto",
    n_threads: int | None = None,
    **options: Any,
) -> Server:
    """Start a server in this process and return when it is ready.

    Args:
        model: a loaded one, a file, or None for the small model inside the package.
        port: 0: any free one; see ``Server.port`` and ``Server.url``.
        wait: False: return at once; requests are answered with 503 until the model is loaded.
        backend: as for :meth:`grebe.Model.load`, when ``model`` is a file.
        n_threads: likewise.
        options: those of :class:`grebe.server.options.ServeOptions`: host, n_ctx, cache_dir, ...

    Raises:
        GrebeError: the model cannot be loaded, or an option is wrong.
        StorageError: the port is taken.

    Example:
        >>> import grebe, urllib.request
        >>> with grebe.serve() as server:
        ...     urllib.request.urlopen(server.url + "/health").read()
        b'{"status":"ok"}'
    """
    server = Server(loader(model, backend, n_threads), server_options(port=port, **options))
    server.start()
    return server.wait_ready() if wait else server


def loader(
    model: Model | str | os.PathLike[str] | None,
    backend: str = "auto",
    n_threads: int | None = None,
    **load_options: Any,
) -> Callable[[], tuple[Model, bool]]:
    """A function that gives the model, and whether it is to be closed at the end."""
    if isinstance(model, Model):
        return lambda: (model, False)
    return lambda: (
        Model.load(model, backend=backend, n_threads=n_threads, **load_options),
        True,
    )


def server_options(**options: Any) -> ServeOptions:
    """ServeOptions, with a clear error for a name that is none.

    Raises:
        InvalidArgumentError: an option that is wrong.
    """
    from dataclasses import fields

    from ..errors import InvalidArgumentError

    names = {f.name for f in fields(ServeOptions)}
    for name in options:
        if name not in names:
            raise InvalidArgumentError(
                f"there is no option {name}; there are {', '.join(sorted(names))}"
            )
    for name in ("api_keys", "allowed_hosts", "cors"):
        if isinstance(options.get(name), str):
            options[name] = (options[name],)
    return ServeOptions(**options)
