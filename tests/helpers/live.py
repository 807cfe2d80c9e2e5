"""A server on loopback with the embedded model and scripted replies."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grebe.server.run import Server, serve

from . import models


@contextmanager
def serving(replies: Mapping[str, Any], **options: Any) -> Iterator[Server]:
    """The model is shared by all servers of a test run."""
    with tempfile.TemporaryDirectory(prefix="grebe-tests-") as folder:
        script = Path(folder) / "replies.json"
        script.write_text(json.dumps(replies))
        with serve(models.load("embedded"), scripted_replies=script, **options) as server:
            yield server


def asking(key: str, text: str = "Please.") -> str:
    """A user's text that the reply ``key`` answers."""
    return f"{text} [[script:{key}]]"
