"""The conversion: one pass over the output file, which is written in order.

Data goes to OUT.partial; beside it OUT.journal says how much of it is safely on disk. A run that
was killed is continued from there: what is on disk is read once for the hashes, the rest is made
as if nothing had happened, and the bytes are the same. At the end the manifest is written and
OUT.partial renamed, so a file with the final name is always whole.

Memory: a few pieces (outputs.PIECE_WEIGHTS), whatever the size of the model.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import _engine
from ..errors import FormatError, StorageError
from . import metadata
from .checkpoint import Checkpoint
from .gguf_file import ALIGNMENT, Entry, header, key
from .imatrix import read_imatrix
from .layout import draft_targets, model_targets
from .outputs import Output, Piece, check_experts, plan_outputs, spans
from .partial_file import PartialFile
from .pieces import PLAIN, Floats, Importance, narrow, numbers
from .recipes import TYPES, Rule, recipe

__all__ = ["Options", "Report", "quantize"]

LOOK_AHEAD = 2  # pieces that are read and widened while one is quantized
DRAFT_ARCHITECTURE = "deepseek4_mtp_support"


@dataclass(frozen=True)
class Options:
    """What to make of a checkpoint.

    Attributes:
        recipe: a name of recipes.RECIPES.
        rules: after those of the recipe.
        imatrix: file of importances, or None for equal ones.
        drafts: "none", "file" (into the same file) or "sidecar" (the draft layers alone).
        tokenizer: whether tokenizer.json goes into the file.
        n_threads: 0: all cores.
        overwrite: whether a finished file of this name is replaced.
    """

    recipe: str = "q2"
    rules: tuple[Rule, ...] = ()
    imatrix: Path | None = None
    drafts: str = "none"
    tokenizer: bool = True
    n_threads: int = 0
    overwrite: bool = False


@dataclass
class Report:
    """What was made.

    Attributes:
        census: type -> number of tensors and bytes.
        fallbacks: tensors whose rows do not divide into blocks of the type that was asked for.
        unimportant: quantized matrices without an entry in the importance matrix.
        ignored: checkpoint tensors that are in no tensor of the file.
        resumed_bytes: how much an earlier run had written.
    """

    path: Path
    n_bytes: int = 0
    sha256: str = ""
    seconds: float = 0.0
    resumed_bytes: int = 0
    census: dict[str, tuple[int, int]] = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)
    unimportant: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def _check_importance(outputs: Sequence[Output], importance: Importance, report: Report) -> None:
    for o in outputs:
        if o.dtype in PLAIN or o.dtype in ("BF16", "I8", "I32"):
            continue
        found = importance.get(o.name)
        if found is None:
            report.unimportant.append(o.name)
            continue
        n_in, n_experts = o.shape[-1], o.shape[0] if len(o.shape) == 3 else 1
        if found.size not in (n_in, n_in * n_experts):
            message = (
                f"imatrix: {o.name} has {found.size} numbers; expected {n_in * n_experts}, "
                f"{n_experts} x {n_in}"
            )
            raise FormatError(message)


# ---------------------------------------------------------------- all of it


def _plan_name(head: bytes, checkpoint: Checkpoint, imatrix: Path | None) -> str:
    """One name for all that decides the bytes."""
    h = hashlib.sha256(head)
    h.update(f"{_engine.version}\n".encode())
    for name, size in sorted(checkpoint.shards.items()):
        h.update(f"{name} {size} {(checkpoint.folder / name).stat().st_mtime_ns}\n".encode())
    if imatrix is not None:
        h.update(hashlib.sha256(imatrix.read_bytes()).digest())
    return h.hexdigest()


def _keys(checkpoint: Checkpoint, options: Options) -> list[bytes]:
    config = checkpoint.config
    name = config.get("_name_or_path") or checkpoint.folder.resolve().name
    draft = options.drafts == "sidecar"
    architecture = DRAFT_ARCHITECTURE if draft else metadata.ARCHITECTURE
    keys = metadata.model_keys(
        config, name=str(name), recipe=options.recipe, architecture=architecture
    )
    if draft:
        keys.append(key("deepseek4.mtp_layer_count", "u32", 1))
    elif options.tokenizer:
        keys += metadata.tokenizer_keys(checkpoint.folder, config)
    if options.imatrix is not None:
        keys.append(key("quantize.imatrix.file", "string", options.imatrix.name))
    return keys


def quantize(
    folder: Path | str,
    out: Path | str,
    options: Options | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Makes a GGUF file of a checkpoint folder.

    Args:
        folder: config.json, tokenizer.json and safetensors shards.
        out: the file; OUT.json beside it will list the hash of every tensor.
        options: recipe and rules.
        on_progress: called with (bytes done, bytes in all) after each piece.

    Raises:
        FormatError: the checkpoint is damaged or lacks a tensor; nothing was written.
        UnsupportedModelError: config.json describes another model.
        StorageError: a file could not be read or written. What was written stays as OUT.partial
            and the next call with the same arguments goes on from there.
    """
    options = options or Options()
    path = Path(out)
    start = time.monotonic()
    if path.exists() and not options.overwrite:
        raise StorageError(f"{path}: exists already", str(path), errno.EEXIST)
    with Checkpoint(folder) as checkpoint:
        report = Report(path)
        targets = model_targets(checkpoint) if options.drafts != "sidecar" else []
        if options.drafts != "none":
            drafts = draft_targets(checkpoint)
            if not drafts:
                raise FormatError(f"{folder}: the checkpoint has no draft layers", str(folder))
            targets += drafts
        rules = (*recipe(options.recipe, checkpoint.config["num_hidden_layers"]), *options.rules)
        outputs = plan_outputs(checkpoint, targets, rules, report.fallbacks)
        check_experts(outputs)
        importance = read_imatrix(options.imatrix) if options.imatrix is not None else {}
        if options.imatrix is not None:
            _check_importance(outputs, importance, report)
        used = {s for t in targets for s in t.sources}
        report.ignored = [
            n
            for n in checkpoint.tensors
            if n not in used
            and not (n.endswith(".scale") and f"{n[:-5]}weight" in used)
            and (options.drafts != "sidecar" or n.startswith("mtp."))
        ]
        entries = [Entry(o.name, TYPES[o.dtype][0], o.shape, o.n_bytes) for o in outputs]
        head, offsets = header(_keys(checkpoint, options), entries)
        total = offsets[-1] + entries[-1].n_bytes
        total += -total % ALIGNMENT
        plan = _plan_name(head, checkpoint, options.imatrix)
        file = PartialFile(path, plan, total)
        try:
            hashes = _write(
                checkpoint, file, head, outputs, importance, options, on_progress, total
            )
            report.n_bytes, report.sha256 = file.position, file.sha256.hexdigest()
            report.resumed_bytes = file.safe
            for o in outputs:
                n, b = report.census.get(o.dtype, (0, 0))
                report.census[o.dtype] = (n + 1, b + o.n_bytes)
            file.finish(_manifest(checkpoint, options, report, outputs, offsets, hashes))
        finally:
            file.close()
    report.seconds = time.monotonic() - start
    return report


def _write(
    checkpoint: Checkpoint,
    file: PartialFile,
    head: bytes,
    outputs: Sequence[Output],
    importance: Importance,
    options: Options,
    on_progress: Callable[[int, int], None] | None,
    total: int,
) -> list[str]:
    """Header and data; the SHA-256 of every tensor."""
    if file.safe >= len(head):
        for _ in file.read_back(len(head)):
            pass
    else:
        file.write(head)
    hashes = []
    with ThreadPoolExecutor(1, "grebe-quantize") as pool:
        ahead: deque[tuple[Piece, Future[bytes | Floats]]] = deque()
        waiting = (p for o in outputs for p in _missing(o, file, outputs, len(head)))

        def refill() -> None:
            while len(ahead) < LOOK_AHEAD:
                p = next(waiting, None)
                if p is None:
                    return
                ahead.append((p, pool.submit(numbers, checkpoint, p)))

        try:
            refill()
            for o in outputs:
                digest = hashlib.sha256()
                for n_bytes, p in spans(o):
                    if file.position + n_bytes <= file.safe:
                        for chunk in file.read_back(n_bytes):
                            digest.update(chunk)
                    else:
                        ahead_p, future = ahead.popleft()
                        assert ahead_p == p
                        data = future.result()
                        refill()
                        if not isinstance(data, bytes):
                            data = narrow(p, data, importance, options.n_threads)
                        assert len(data) == n_bytes
                        digest.update(data)
                        file.write(data)
                    if on_progress is not None:
                        on_progress(file.position, total)
                padding = -o.n_bytes % ALIGNMENT
                if file.position + padding <= file.safe:
                    for _ in file.read_back(padding):
                        pass
                else:
                    file.write(bytes(padding))
                hashes.append(digest.hexdigest())
        finally:
            for _, future in ahead:
                future.cancel()
    return hashes


def _missing(
    o: Output, file: PartialFile, outputs: Sequence[Output], n_head: int
) -> Iterator[Piece]:
    """The pieces of an output that an earlier run has not written."""
    at = n_head
    for other in outputs:
        if other is o:
            break
        at += other.n_bytes + -other.n_bytes % ALIGNMENT
    for n_bytes, p in spans(o):
        if at + n_bytes > file.safe:
            yield p
        at += n_bytes


def _manifest(
    checkpoint: Checkpoint,
    options: Options,
    report: Report,
    outputs: Sequence[Output],
    offsets: Sequence[int],
    hashes: Sequence[str],
) -> dict[str, Any]:
    return {
        "file": report.path.name,
        "bytes": report.n_bytes,
        "sha256": report.sha256,
        "grebe": _engine.version,
        "recipe": options.recipe,
        "rules": [f"{pattern}={dtype}" for pattern, dtype in options.rules],
        "imatrix": options.imatrix.name if options.imatrix else None,
        "source": dict(sorted(checkpoint.shards.items())),
        "tensors": [
            {
                "name": o.name,
                "type": o.dtype,
                "shape": list(o.shape),
                "offset": offset,
                "bytes": o.n_bytes,
                "sha256": digest,
            }
            for o, offset, digest in zip(outputs, offsets, hashes, strict=True)
        ],
    }
