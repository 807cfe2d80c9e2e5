"""A hundred cases whose logits were saved: what a change of files or of the engine is held against.

A case is a piece of text and the distribution of the token after it. The file is an ``.npz`` with
the tokens of all cases, their lengths and f32 log probabilities; a model of another tokenizer does
not fit it.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compare import divergence, log_softmax
from .errors import FormatError, InvalidArgumentError, StorageError
from .model import Model

__all__ = ["Score", "cases_of", "save_reference", "score"]

N_CASES = 100
SHORTEST = 4  # tokens of the shortest case
VERSION = 1

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Score:
    """A model against saved logits.

    Attributes:
        n_cases: of the file.
        passed: cases with the same choice as the reference.
        kl_mean: of the reference's distribution from the model's; kl_max the worst case.
        worst: number of that case.
        max_difference: largest difference of a log probability above -10 in the reference.
        reference: fingerprint of the model that wrote the file.
    """

    n_cases: int
    passed: int
    kl_mean: float
    kl_max: float
    worst: int
    max_difference: float
    reference: str

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def cases_of(
    model: Model,
    texts: Sequence[str],
    n_cases: int = N_CASES,
    longest: int = 512,
    special: bool = False,
) -> list[list[int]]:
    """Pieces of the texts, evenly spread, of lengths from 4 to ``longest`` in equal ratios.

    Raises:
        InvalidArgumentError: the texts are too short for so many different cases.
    """
    ids = [token for text in texts for token in model.tokenizer.encode(text, special)]
    longest = min(longest, len(ids) - n_cases)
    if n_cases < 1 or longest < SHORTEST:
        message = f"{len(ids)} tokens of text are too few for {n_cases} cases"
        raise InvalidArgumentError(message)
    lengths = np.geomspace(SHORTEST, longest, n_cases).round().astype(int)
    # Long and short ones alternate over the text: 37 has no divisor in common with 100.
    order = [i * 37 % n_cases if n_cases % 37 else i for i in range(n_cases)]
    starts = np.linspace(0, len(ids) - longest, n_cases).astype(int)
    return [
        [model.config.bos_token, *ids[start : start + lengths[i]]]
        for start, i in zip(starts.tolist(), order, strict=True)
    ]


def _log_probabilities(
    model: Model, cases: Sequence[Sequence[int]], on_progress: Progress | None
) -> NDArray[np.float32]:
    rows = []
    with model.session(max(map(len, cases))) as session:
        for i, tokens in enumerate(cases):
            session.rewind(0)
            session.prefill(tokens)
            rows.append(log_softmax(session.logits).astype(np.float32))
            if on_progress is not None:
                on_progress(i + 1, len(cases))
    return np.stack(rows)


def save_reference(
    model: Model,
    cases: Sequence[Sequence[int]],
    path: Path | str,
    on_progress: Progress | None = None,
) -> None:
    """Writes the cases and what the model makes of them; the file is whole or as it was."""
    path = Path(path)
    logits = _log_probabilities(model, cases, on_progress)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                version=np.int64(VERSION),
                fingerprint=np.array(model.fingerprint),
                tokens=np.concatenate([np.asarray(c, np.int32) for c in cases]),
                lengths=np.array([len(c) for c in cases], np.int64),
                log_probabilities=logits,
            )
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"{path}: {error.strerror}", str(path), error.errno) from None


def _load(path: Path) -> tuple[str, list[list[int]], NDArray[np.float32]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            version = int(stored["version"])
            tokens, lengths = stored["tokens"], stored["lengths"]
            logits, name = stored["log_probabilities"], str(stored["fingerprint"])
    except FileNotFoundError as error:
        raise StorageError(f"{path}: {error.strerror}", str(path), error.errno) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        raise FormatError(f"{path}: not a file of reference logits", str(path)) from None
    good = (
        version == VERSION
        and tokens.ndim == lengths.ndim == 1
        and tokens.dtype == np.int32
        and lengths.dtype == np.int64
        and logits.dtype == np.float32
        and len(lengths) > 0
        and (lengths > 0).all()
        and lengths.sum() == len(tokens)
        and logits.shape[:-1] == lengths.shape
        and bool(np.isfinite(logits).all())
    )
    if not good:
        raise FormatError(f"{path}: not a file of reference logits of version {VERSION}", str(path))
    ends = np.cumsum(lengths)[:-1]
    return name, [part.tolist() for part in np.split(tokens, ends)], logits


def score(model: Model, path: Path | str, on_progress: Progress | None = None) -> Score:
    """A model against the cases of a file.

    Raises:
        FormatError: it is no file of save_reference().
        InvalidArgumentError: it is of a model with another vocabulary.
    """
    name, cases, expected = _load(Path(path))
    vocab = model.config.vocab_size
    if expected.shape[1] != vocab:
        message = f"{path}: logits of {expected.shape[1]} tokens; the model has {vocab}"
        raise InvalidArgumentError(message)
    found = _log_probabilities(model, cases, on_progress)
    kl = divergence(expected.astype(np.float64), found.astype(np.float64))
    likely = expected > -10
    return Score(
        n_cases=len(cases),
        passed=int((expected.argmax(-1) == found.argmax(-1)).sum()),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        worst=int(kl.argmax()),
        max_difference=float(np.abs(expected - found)[likely].max()),
        reference=name,
    )
