"""Reads a Hugging Face ``tokenizer.json`` into the engine's tokenizer.

The engine implements one tokenizer, DeepSeek V4's: byte-level BPE behind three regex splits. A
file that says anything else is refused here: a nearly right tokenizer gives nearly right answers.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from grebe import _engine
from grebe.checks import file_path
from grebe.errors import FormatError, StorageError, UnsupportedModelError

# The scanner in csrc/text/pretokenize.cpp is these three, and only these.
SPLITS = [
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    r"|\s*[" + "\r\n" + r"]+|\s+(?!\S)|\s+",
]
# The one of DeepSeek V4 has 8 MB.
MAX_BYTES = 256 << 20
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"


def load(path: str | os.PathLike[str]) -> _engine.Tokenizer:
    """Build a tokenizer from a file; errors are those of ``Tokenizer.from_file``."""
    file = file_path(path)
    name = str(file)
    try:
        # Looked at before it is opened: a pipe would wait for its writer.
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{name}: byte 0: not a regular file", name, 0)
        if status.st_size > MAX_BYTES:
            raise FormatError(f"{name}: larger than {MAX_BYTES} bytes", name, MAX_BYTES)
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{name}: not UTF-8", name, error.start) from None
    except OSError as error:
        raise StorageError(
            f"{name}: cannot open: {error.strerror}", name, error.errno or 0
        ) from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name}: not JSON: {error}", name, getattr(error, "pos", 0)) from None
    try:
        return _build(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, FormatError | UnsupportedModelError):
            raise
        raise FormatError(f"{name}: not a tokenizer.json: {error!r}", name, 0) from error


def _build(data: dict[str, Any]) -> _engine.Tokenizer:
    model = data["model"]
    _expect("model.type", model.get("type"), "BPE")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        _expect(f"model.{key}", model.get(key) or None, None)
    for key in ("fuse_unk", "byte_fallback", "ignore_merges"):
        _expect(f"model.{key}", bool(model.get(key)), False)
    _expect("normalizer", (data.get("normalizer") or {}).get("normalizers", []), [])
    steps = data["pre_tokenizer"]["pretokenizers"]
    _expect("pre_tokenizer", [s["type"] for s in steps], ["Split", "Split", "Split", "ByteLevel"])
    for step, regex in zip(steps, SPLITS, strict=False):
        _expect("pre_tokenizer pattern", step["pattern"].get("Regex"), regex)
        _expect("pre_tokenizer split", (step["behavior"], step["invert"]), ("Isolated", False))
    _expect(
        "pre_tokenizer bytes", (steps[3]["add_prefix_space"], steps[3]["use_regex"]), (False, False)
    )

    added = {entry["id"]: entry for entry in data["added_tokens"]}
    vocab: dict[str, int] = model["vocab"]
    ids = [*vocab.values(), *added]
    n_tokens = 1 + max(ids, default=-1)
    if min(ids, default=0) < 0:
        raise ValueError(f"token id {min(ids)}")
    if n_tokens > 4 * (len(vocab) + len(added)):
        raise ValueError(f"{n_tokens} ids for {len(vocab) + len(added)} tokens")
    # An id without a token decodes to nothing and no text gives it.
    tokens, types = [""] * n_tokens, [UNUSED] * n_tokens
    for token, i in vocab.items():
        tokens[i], types[i] = token, NORMAL
    for i, entry in added.items():
        # `normalized` only matters with a normalizer. The other three would change what the text
        # around a token becomes.
        for key in ("lstrip", "rstrip", "single_word"):
            _expect(f"added_tokens {entry['content']!r} {key}", bool(entry.get(key)), False)
        tokens[i] = entry["content"]
        types[i] = CONTROL if entry["special"] else USER_DEFINED
    # Older files write a merge as "left right".
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    by_text = {entry["content"]: i for i, entry in added.items()}
    return _engine.Tokenizer.from_spec(
        tokens, types, merges, bos=by_text.get(BOS, 0), eos=by_text.get(EOS, 1)
    )


def _expect(key: str, found: object, expected: object) -> None:
    if found != expected:
        raise UnsupportedModelError(
            f"tokenizer.json: {key} is {found!r}; expected {expected!r}",
            key,
            repr(found),
            repr(expected),
        )
