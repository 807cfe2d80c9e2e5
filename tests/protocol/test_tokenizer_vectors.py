"""The engine's tokenizer against the reference, as the chat protocol uses it."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.helpers.chat import read_vectors, real_tokenizer

ROWS = read_vectors("chat/tokenizer.jsonl")


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_tokenizer(row: dict[str, Any]):
    text = row.get("text")
    if text is None:
        text = base64.b64decode(row["bytes_b64"]).decode("utf-8", errors="replace")
    tokenizer = real_tokenizer()
    assert tokenizer.encode(text) == row["ids"]
    if "ids_allow_special" in row:
        assert tokenizer.encode(text, allow_special=True) == row["ids_allow_special"]
    assert tokenizer.decode(row["ids"]) == text
