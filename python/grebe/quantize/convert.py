"""The conversion: one pass over the output file, which is written in order.

Data goes to OUT.partial; beside it OUT.journal says how much of it is safely on disk. A run that
was killed is continued from there: what is on disk is read once for the hashes, the rest is made
as if nothing had happened, and the bytes are the same. At the end the manifest is written and
OUT.partial renamed, so a file with the final name is always whole.

Memory: a few pieces of PIECE_WEIGHTS weights, whatever the size of the model.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _engine
from ..errors import FormatError, InvalidArgumentError, StorageError
from . import metadata
from .checkpoint import TILE, Checkpoint, fp4_to_mxfp4
from .gguf_file import ALIGNMENT, Entry, header, key
from .imatrix import read_imatrix
from .layout import Target, draft_targets, model_targets
from .recipes import KEEP, TYPES, Rule, choose, fitting, recipe

__all__ = ["Options", "Report", "quantize"]

PIECE_WEIGHTS = 8 << 20  # one expert of the full model
LOOK_AHEAD = 2  # pieces that are read and widened while one is quantized
JOURNAL_BYTES = 256 << 20  # between two notes in the journal; each waits for the disk
HASH_BYTES = 16 << 20
DRAFT_ARCHITECTURE = "deepseek4_mtp_support"
PLAIN = {"F32": "<f4", "F16": "<f2"}

Floats = NDArray[np.float32]
Importance = dict[str, Floats]


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


@dataclass(frozen=True)
class Output:
    """A tensor of the file; an FP8 matrix that is kept is two, codes and scales."""

    target: Target
    name: str
    dtype: str
    shape: tuple[int, ...]
    what: str  # "weights", "codes", "scales"

    @property
    def n_bytes(self) -> int:
        """Size of the data, without padding."""
        _, block, size = TYPES[self.dtype]
        return int(np.prod(self.shape, dtype=np.int64)) // block * size


# ---------------------------------------------------------------- the plan


def _kept(kind: str) -> str:
    return {"fp8": "FP8", "fp4": "MXFP4"}.get(kind, kind.upper())


def plan_outputs(
    checkpoint: Checkpoint, targets: Sequence[Target], rules: tuple[Rule, ...], report: Report
) -> list[Output]:
    """Types of all tensors."""
    outputs: list[Output] = []
    for t in targets:
        kind = checkpoint.kind(t.sources[0])
        if kind in ("i64", "i32"):
            dtype = "I32"
        elif len(t.shape) == 1:
            dtype = "F32"
        else:
            wanted = choose(rules, t.name)
            dtype = fitting(wanted, t.shape[-1])
            if dtype != wanted:
                report.fallbacks.append(f"{t.name}: {dtype} instead of {wanted}")
            if dtype == KEEP:
                dtype = _kept(kind)
            if t.name.endswith("_ape.weight") and dtype not in ("F32", "F16", "BF16"):
                dtype = "F16"  # added, not multiplied: no engine reads it quantized
        if dtype == "FP8":
            tiles = tuple(-(-n // TILE) for n in t.shape[-2:])
            scales = t.name.removesuffix("weight") + "scale"
            outputs.append(Output(t, t.name, "I8", t.shape, "codes"))
            outputs.append(Output(t, scales, "I8", (*t.shape[:-2], *tiles), "scales"))
        elif dtype in TYPES:
            outputs.append(Output(t, t.name, dtype, t.shape, "weights"))
        else:
            message = f"{t.name}: {t.sources[0]} is {dtype}, which no GGUF tensor can be"
            raise FormatError(message, str(checkpoint.folder))
    return outputs


def _check_experts(outputs: Sequence[Output]) -> None:
    types = {o.name: o.dtype for o in outputs}
    for name, dtype in types.items():
        up = name.replace("ffn_gate_exps", "ffn_up_exps")
        if up != name and types.get(up) != dtype:
            message = f"{name} would be {dtype} and {up} {types.get(up)}; they must be the same"
            raise InvalidArgumentError(message)


# ---------------------------------------------------------------- pieces


@dataclass(frozen=True)
class Piece:
    """Rows [begin, end) of one source of an output."""

    output: Output
    source: str
    i_source: int
    begin: int
    end: int


def pieces_of(output: Output) -> Iterator[Piece]:
    """In the order of the file; pieces of FP8 begin where a tile does."""
    t = output.target
    shape = t.shape[1:] if t.stacked else t.shape
    n_rows = shape[0]
    n_in = shape[1] if len(shape) > 1 else 1
    step = n_rows
    if output.what != "scales":
        step = max(TILE, PIECE_WEIGHTS // n_in // TILE * TILE)
    for i, source in enumerate(t.sources):
        for begin in range(0, n_rows, step):
            yield Piece(output, source, i, begin, min(n_rows, begin + step))


def _numbers(checkpoint: Checkpoint, p: Piece) -> bytes | Floats:
    """Reads a piece: the final bytes where nothing is computed, else its weights."""
    o = p.output
    kind = checkpoint.kind(p.source)
    if o.what == "codes":
        return checkpoint.codes(p.source, p.begin, p.end).tobytes()
    if o.what == "scales":
        return checkpoint.scales(p.source, p.begin, p.end).tobytes()
    if o.dtype == "I32":
        ids = checkpoint.codes(p.source, p.begin, p.end)
        wide = ids.view("<i8" if kind == "i64" else "<i4")
        if wide.size and (wide.min() < 0 or wide.max() >= 2**31):
            raise FormatError(f"{p.source} has numbers that are no expert's", p.source)
        return wide.astype("<i4").tobytes()
    if o.dtype == "MXFP4" and kind == "fp4":
        codes = checkpoint.codes(p.source, p.begin, p.end)
        return fp4_to_mxfp4(codes, checkpoint.scales(p.source, p.begin, p.end)).tobytes()
    if o.dtype == "BF16" and kind == "bf16":
        return checkpoint.codes(p.source, p.begin, p.end).tobytes()
    return checkpoint.f32(p.source, p.begin, p.end)


def _narrow(p: Piece, x: Floats, importance: Importance, n_threads: int) -> bytes:
    """Weights to the type of the file."""
    o = p.output
    if o.dtype == "BF16":
        return _engine.f32_to_bf16(np.ascontiguousarray(x).reshape(-1)).tobytes()
    if o.dtype in PLAIN:
        with np.errstate(over="ignore"):
            narrow = x.astype(PLAIN[o.dtype])
        if not np.isfinite(narrow).all():
            raise FormatError(f"{p.source} has weights that {o.dtype} cannot hold", p.source)
        return narrow.tobytes()
    weights = importance.get(o.name)
    n_in = o.shape[-1]
    if weights is not None:
        rows = weights.reshape(-1, n_in)
        weights = np.ascontiguousarray(rows[p.i_source if len(rows) > 1 else 0])
    try:
        data = _engine.quantize(
            o.dtype, np.ascontiguousarray(x.reshape(-1, n_in)), weights, n_threads=n_threads
        )
    except InvalidArgumentError as error:
        raise FormatError(f"{p.source}, rows from {p.begin}: {error}", p.source) from None
    return data.tobytes()


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


# ---------------------------------------------------------------- the file


class PartialFile:
    """OUT.partial and its journal, with the hashes of what was written."""

    def __init__(self, path: Path, plan: str, total: int) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.journal = path.with_name(path.name + ".journal")
        self.sha256 = hashlib.sha256()
        self.position = 0
        self._noted = 0
        try:
            self._file = FileIO(os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o644), "r+")
        except OSError as error:
            raise self._failed(error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            safe = self._safe_bytes(plan)
            free = shutil.disk_usage(self.partial.parent).free
            on_disk = os.fstat(self._file.fileno()).st_blocks * 512
            if total > free + on_disk:
                message = f"{self.partial}: needs {total} bytes; {free + on_disk} are free"
                raise StorageError(message, str(self.partial), errno.ENOSPC)
            self._file.truncate(safe)
            self._log = self.journal.open("a" if safe else "w", encoding="utf-8")
            if safe == 0:
                self._log.write(json.dumps({"plan": plan}) + "\n")
                self._log.flush()
            self.safe = safe
        except BlockingIOError:
            self._file.close()
            message = f"{self.partial}: another grebe quantize is writing it"
            raise StorageError(message, str(self.partial), errno.EAGAIN) from None
        except OSError as error:
            self._file.close()
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> StorageError:
        if isinstance(error, StorageError):
            return error
        message = f"{self.partial}: {error.strerror}"
        if error.errno == errno.ENOSPC:
            message += "; run the same command again when there is room"
        return StorageError(message, str(self.partial), error.errno)

    def _safe_bytes(self, plan: str) -> int:
        """What an earlier run of the same plan left."""
        try:
            lines = self.journal.read_text(encoding="utf-8").splitlines(keepends=True)
            entries = [json.loads(line) for line in lines if line.endswith("\n")]
            if not entries or entries[0].get("plan") != plan:
                return 0
            safe = max((int(e["bytes"]) for e in entries[1:]), default=0)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0
        return safe if safe <= os.fstat(self._file.fileno()).st_size else 0

    def read_back(self, n_bytes: int) -> Iterator[bytes]:
        """The next n_bytes of what an earlier run wrote, hashed; for the tensors' own hashes."""
        while n_bytes > 0:
            chunk = os.pread(self._file.fileno(), min(n_bytes, HASH_BYTES), self.position)
            if not chunk:
                raise StorageError(f"{self.partial}: was cut while in use", str(self.partial))
            self.sha256.update(chunk)
            self.position += len(chunk)
            n_bytes -= len(chunk)
            yield chunk

    def write(self, data: bytes) -> None:
        """Appends, and now and then makes sure that it is on disk and says so in the journal."""
        self.sha256.update(data)
        view = memoryview(data)
        try:
            while view:
                n = os.pwrite(self._file.fileno(), view, self.position)
                self.position += n
                view = view[n:]
            if self.position - self._noted >= JOURNAL_BYTES:
                self.note()
        except OSError as error:
            raise self._failed(error) from None

    def note(self) -> None:
        """What is written so far survives from here on."""
        os.fsync(self._file.fileno())
        self._log.write(json.dumps({"bytes": self.position}) + "\n")
        self._log.flush()
        os.fsync(self._log.fileno())
        self._noted = self.position

    def finish(self, manifest: dict[str, Any]) -> None:
        """Gives the file its name; the manifest first, so that no file is without."""
        beside = self.path.with_name(self.path.name + ".json")
        draft = self.path.with_name(self.path.name + ".json.partial")
        try:
            os.fsync(self._file.fileno())
            with draft.open("w", encoding="utf-8") as out:
                json.dump(manifest, out, indent=1)
                out.write("\n")
                out.flush()
                os.fsync(out.fileno())
            draft.replace(beside)
            self.partial.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
            self.journal.unlink()
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Leaves what is there for the next run."""
        self._log.close()
        self._file.close()


# ---------------------------------------------------------------- all of it


def _plan_name(head: bytes, checkpoint: Checkpoint, imatrix: Path | None) -> str:
    """One name for all that decides the bytes."""
    h = hashlib.sha256(head)
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
        outputs = plan_outputs(checkpoint, targets, rules, report)
        _check_experts(outputs)
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
                ahead.append((p, pool.submit(_numbers, checkpoint, p)))

        try:
            refill()
            for o in outputs:
                digest = hashlib.sha256()
                for n_bytes, p in _spans(o):
                    if file.position + n_bytes <= file.safe:
                        for chunk in file.read_back(n_bytes):
                            digest.update(chunk)
                    else:
                        ahead_p, future = ahead.popleft()
                        assert ahead_p == p
                        numbers = future.result()
                        refill()
                        if not isinstance(numbers, bytes):
                            numbers = _narrow(p, numbers, importance, options.n_threads)
                        assert len(numbers) == n_bytes
                        digest.update(numbers)
                        file.write(numbers)
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


def _spans(o: Output) -> Iterator[tuple[int, Piece]]:
    """Pieces with their bytes."""
    _, block, size = TYPES[o.dtype]
    for p in pieces_of(o):
        rows = p.end - p.begin
        if o.what == "scales":
            rows = -(-p.end // TILE) - p.begin // TILE
        n_in = o.shape[-1] if len(o.shape) > 1 else 1
        yield rows * n_in // block * size, p


def _missing(
    o: Output, file: PartialFile, outputs: Sequence[Output], n_head: int
) -> Iterator[Piece]:
    """The pieces of an output that an earlier run has not written."""
    at = n_head
    for other in outputs:
        if other is o:
            break
        at += other.n_bytes + -other.n_bytes % ALIGNMENT
    for n_bytes, p in _spans(o):
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
