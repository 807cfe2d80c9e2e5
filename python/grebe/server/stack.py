"""All that stands behind the application: model, KV store, worker, replay table, service."""

from __future__ import annotations

import contextlib
import logging
import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from ..chat.markers import Markers
from ..chat.replay import ReplayTable
from ..errors import InvalidArgumentError
from ..generations import generation_of
from ..model import EMBEDDED_MODEL, Model
from . import anthropic, completions, models, openai_chat, openai_responses
from .options import ServeOptions
from .requests import Api
from .scripted import ScriptedReplies, ScriptWriter
from .turns import ServiceConfig, TurnService
from .worker import EngineWorker

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from ..cache import Cache

__all__ = ["Stack"]

log = logging.getLogger("grebe.server")

#: More is possible; few conversations need it, and clients compact by what we tell them.
DEFAULT_CTX = 131_072


class Stack:
    """Opened from a model; closed once, in the order that loses nothing.

    Args:
        model: stays open if the caller opened it.
        options: of the server.
        owned: close the model at the end.
    """

    def __init__(self, model: Model, options: ServeOptions, *, owned: bool = False) -> None:
        self._exit = ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self._exit.close)
            if owned:
                self._exit.callback(model.close)
            self._open(model, options)
            undo.pop_all()

    def _open(self, model: Model, options: ServeOptions) -> None:
        max_ctx = model.config.max_context
        self.n_ctx = min(DEFAULT_CTX, max_ctx) if options.n_ctx is None else options.n_ctx
        if self.n_ctx > max_ctx:
            raise InvalidArgumentError(
                f"n_ctx is {self.n_ctx}; this model can do with up to {max_ctx} tokens"
            )
        self.cache: Cache | None = None
        if options.cache_dir is not None:
            self.cache = model.open_cache(
                options.cache_dir,
                budget_bytes=round(options.cache_gb * 1e9),
                ram_bytes=round(options.ram_gb * 1e9),
            )
            self._exit.callback(self.cache.close)
        self.worker = EngineWorker(
            model,
            cache=self.cache,
            n_ctx=self.n_ctx,
            max_waiting=options.max_waiting,
            max_running=options.max_running,
        )
        self.config = ServiceConfig(
            model_id=options.name or model_name(model),
            n_ctx=self.n_ctx,
            generation=options.generation or generation_of(model.path),
            official_sampling=options.official_sampling,
        )
        scripts = None
        if options.scripted_replies is not None:
            replies = ScriptedReplies.load(options.scripted_replies)
            scripts = ScriptWriter(replies, model.tokenizer)
        tokenizer = model.tokenizer
        self.replay = ReplayTable(tokenizer, Markers.of(tokenizer), options.replay_dir)
        self._exit.callback(self.replay.close)
        self.service = TurnService(
            self.worker, tokenizer, self.config, replay=self.replay, scripts=scripts
        )
        self.facts: dict[str, Any] = {
            "id": self.config.model_id,
            "file": model.path.name,
            "backend": model.options["backend"],
            "n_ctx": self.n_ctx,
            "generation": self.config.generation,
            "created": int(time.time()),
        }
        self.worker.start()

    @property
    def routes(self) -> list[BaseRoute]:
        """Of all APIs."""
        return [
            *openai_chat.routes(self.service),
            *openai_responses.routes(self.service),
            *anthropic.routes(self.service),
            *completions.routes(self.service),
            *models.routes(self.service),
        ]

    def stats(self) -> dict[str, Any]:
        """Of the worker and of the KV store."""
        stats = self.worker.stats()
        counts = self.service.counts
        stats["accepted"] = {
            api: counts[f"requests_{api}"] for api in get_args(Api) if counts[f"requests_{api}"]
        }
        stats["messages_replayed"] = counts["messages_replayed"]
        stats["replay"] = self.replay.stats()
        if self.cache is not None and self.cache._impl is not None:
            stats["cache"] = asdict(self.cache.stats())
        return stats

    def close(self, timeout_s: float = 5.0) -> None:
        """Ends jobs within the time, saves anchors, closes. Twice is fine."""
        self.worker.close(timeout_s)
        self._exit.close()


def model_name(model: Model) -> str:
    """What clients call the model."""
    return "grebe-nano" if model.path == EMBEDDED_MODEL else "deepseek-v4-flash"
