"""A hundred cases whose logits were saved: what a change of files or of the engine is held against.

A case is a piece of text and the distribution of the token after it. The file is an ``.npz`` with
the tokens of all cases, their lengths and, of each case, the f32 log probabilities of the likeliest
tokens; what all others share is one number. KL of that is a lower bound of the KL of everything,
off by what two models disagree about within the rest. A model of another vocabulary is refused.
"""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compare import log_softmax
from .errors import FormatError, InvalidArgumentError, StorageError
from .model import Model

__all__ = ["Score", "cases_of", "save_reference", "score"]

N_CASES = 100
SHORTEST = 4  # tokens of the shortest case
N_KEPT = 4096  # log probabilities of a case
LIKELY = -10.0  # log probability from which differences count
VERSION = 2

Progress = Callable[[int, int], object]
Doubles = NDArray[np.float64]


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
        same_weights: whether that is the model's own.
    """

    n_cases: int
    passed: int
    kl_mean: float
    kl_max: float
    worst: int
    max_difference: float
    reference: str
    same_weights: bool

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


@dataclass(frozen=True)
class _Reference:
    fingerprint: str
    vocabulary: str
    cases: list[list[int]]
    kept: NDArray[np.int32]  # [n_cases, n], the likeliest first
    logs: NDArray[np.float32]  # their log probabilities
    rest: Doubles  # [n_cases], the probability of all others together


def vocabulary_hash(model: Model) -> str:
    """SHA-256 of the bytes of all tokens."""
    tokenizer = model.tokenizer
    digest = hashlib.sha256()
    for i in range(tokenizer.vocab_size):
        raw = tokenizer.token_bytes(i)
        digest.update(len(raw).to_bytes(4, "little") + raw)
    return digest.hexdigest()


def _distributions(
    model: Model, cases: Sequence[Sequence[int]], on_progress: Progress | None
) -> Iterator[Doubles]:
    """Log probabilities of the token after each case."""
    with model.session(max(map(len, cases))) as session:
        for i, tokens in enumerate(cases):
            session.rewind(0)
            session.prefill(tokens)
            yield log_softmax(session.logits, str(model.path))
            if on_progress is not None:
                on_progress(i + 1, len(cases))


def _rest(logs: Doubles, kept: NDArray[np.int32]) -> float:
    """The probability that the tokens beside the kept ones share."""
    others = np.ones(len(logs), bool)
    others[kept] = False
    return float(np.exp(logs[others]).sum())


def save_reference(
    model: Model,
    cases: Sequence[Sequence[int]],
    path: Path | str,
    on_progress: Progress | None = None,
) -> None:
    """Writes the cases and what the model makes of them; the file is whole or as it was."""
    path = Path(path)
    kept, logs, rest = [], [], []
    for row in _distributions(model, cases, on_progress):
        kept.append(np.argsort(-row, kind="stable")[:N_KEPT].astype(np.int32))
        logs.append(row[kept[-1]].astype(np.float32))
        rest.append(_rest(row, kept[-1]))
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                version=np.int64(VERSION),
                fingerprint=np.array(model.fingerprint),
                vocabulary=np.array(vocabulary_hash(model)),
                tokens=np.concatenate([np.asarray(c, np.int32) for c in cases]),
                lengths=np.array([len(c) for c in cases], np.int64),
                kept=np.stack(kept),
                log_probabilities=np.stack(logs),
                rest=np.array(rest),
            )
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"{path}: {error.strerror}", str(path), error.errno) from None


def _load(path: Path) -> _Reference:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            version = int(stored["version"])
            if version != VERSION:
                message = f"{path}: reference logits of version {version}; {VERSION} is expected"
                raise FormatError(message, str(path))
            tokens, lengths, kept = stored["tokens"], stored["lengths"], stored["kept"]
            logs, rest = stored["log_probabilities"], stored["rest"]
            names = str(stored["fingerprint"]), str(stored["vocabulary"])
    except FormatError:
        raise
    except FileNotFoundError as error:
        raise StorageError(f"{path}: {error.strerror}", str(path), error.errno) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
        raise FormatError(f"{path}: not a file of reference logits", str(path)) from None
    good = (
        tokens.ndim == lengths.ndim == 1
        and (tokens.dtype, lengths.dtype) == (np.int32, np.int64)
        and (kept.dtype, logs.dtype) == (np.int32, np.float32)
        and len(lengths) > 0
        and (lengths > 0).all()
        and lengths.sum() == len(tokens)
        and kept.ndim == 2
        and kept.shape == logs.shape
        and len(kept) == len(lengths)
        and kept.shape[1] > 0
        and bool(np.isfinite(logs).all())
        and bool((np.diff(np.sort(kept, axis=1), axis=1) > 0).all())
        and (rest.dtype, rest.shape) == (np.float64, lengths.shape)
        and bool((rest >= 0).all())
        and bool((abs(np.exp(logs.astype(np.float64)).sum(1) + rest - 1) < 1e-4).all())
    )
    if not good:
        raise FormatError(f"{path}: damaged: its fields do not fit together", str(path))
    cases = [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]
    return _Reference(*names, cases, kept, logs, rest)


def _divergence(logs: Doubles, rest: float, found: Doubles, found_rest: float) -> float:
    """KL in nats over the kept tokens and the rest as one more."""
    kl = float((np.exp(logs) * (logs - found)).sum())
    if rest > 0:
        kl += rest * math.log(rest / max(found_rest, 1e-300))
    return max(kl, 0.0)


def score(model: Model, path: Path | str, on_progress: Progress | None = None) -> Score:
    """A model against the cases of a file.

    Raises:
        FormatError: it is no file of save_reference().
        InvalidArgumentError: it is of a model with another vocabulary.
    """
    reference = _load(Path(path))
    if reference.vocabulary != vocabulary_hash(model):
        raise InvalidArgumentError(f"{path}: of a model with another vocabulary than {model.path}")
    ids = np.array([i for case in reference.cases for i in case])
    vocab = model.config.vocab_size
    for values in (ids, reference.kept):
        if values.min() < 0 or values.max() >= vocab:
            raise FormatError(f"{path}: has tokens beyond the vocabulary of {vocab}", str(path))
    kl, same, difference = [], [], 0.0
    for i, row in enumerate(_distributions(model, reference.cases, on_progress)):
        kept, logs = reference.kept[i], reference.logs[i].astype(np.float64)
        found = row[kept].astype(np.float32).astype(np.float64)
        kl.append(_divergence(logs, float(reference.rest[i]), found, _rest(row, kept)))
        same.append(int(row.argmax()) == int(kept[0]))
        likely = logs > LIKELY
        difference = max(difference, float(np.abs(logs - found)[likely].max(initial=0)))
    return Score(
        n_cases=len(kl),
        passed=sum(same),
        kl_mean=float(np.mean(kl)),
        kl_max=max(kl),
        worst=int(np.argmax(kl)),
        max_difference=difference,
        reference=reference.fingerprint,
        same_weights=reference.fingerprint == model.fingerprint,
    )
