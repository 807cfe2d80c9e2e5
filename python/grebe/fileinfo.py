"""A look into a GGUF file: what it holds, what it needs, whether this build can run it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import _engine
from .checks import file_path
from .config import ModelConfig, model_config
from .report import file_report, size

__all__ = ["Backend", "FileInfo", "MemoryPlan", "MetadataArray", "TensorInfo", "inspect"]

BLOCK_TOKENS = 512  # KV rows are allocated in blocks of so many tokens (csrc/session/kv_state.h)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of the tensor directory; ``shape`` is in GGUF order, contiguous dimension first."""

    name: str
    dtype: str
    known: bool  # whether this build knows the type
    shape: tuple[int, ...]
    n_bytes: int
    offset: int
    shard: int


@dataclass(frozen=True, slots=True)
class MetadataArray:
    """An array of the metadata: its type, its length and the first numbers (none for strings)."""

    element_type: str
    count: int
    head: tuple[float, ...]

    def __str__(self) -> str:
        shown = ", ".join(f"{x:g}" for x in self.head[:12])
        more = ", ..." if self.head and self.count > 12 else ""
        return f"{self.element_type}[{self.count}] {shown}{more}".rstrip()


@dataclass(frozen=True, slots=True)
class Backend:
    """Whether a backend can run the file here, and with what, or why not."""

    name: str
    available: bool
    detail: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that a model and one session take.

    Attributes:
        n_ctx: tokens of context.
        mapping: the file; the system pages it in and out as it is used.
        dense: the part of it that every token reads.
        experts: the routed experts, of which a token reads a few.
        kv: compressed rows at n_ctx, in whole blocks.
        kv_fixed: windows and compressor state of a session.
        kv_per_token: growth of kv per token, before rounding to blocks.
        scratch: estimate of the buffers of a prefill step.
    """

    n_ctx: int
    mapping: int
    dense: int
    experts: int
    kv: int
    kv_fixed: int
    kv_per_token: float
    scratch: int


@dataclass(frozen=True)
class FileInfo:
    """What :func:`inspect` found. ``str(info)`` is a table, ``info.to_dict()`` is ready for JSON.

    Attributes:
        path: the file, or its first shard.
        version: of the container.
        n_bytes: of all shards.
        metadata: keys and values as in the file.
        tensors: the directory.
        config: the model's numbers; None when the file holds another model.
        problem: why this engine cannot run it; None when it can.
        bytes_per_token: bytes of weights that one decoded token reads.
        expert_bytes: bytes of all routed experts.
        notes: what is unusual.
        backends: what can run it here.
    """

    path: Path
    version: int
    n_bytes: int
    metadata: dict[str, int | float | bool | str | MetadataArray]
    tensors: tuple[TensorInfo, ...]
    config: ModelConfig | None
    problem: str | None
    bytes_per_token: int
    expert_bytes: int
    notes: tuple[str, ...]
    backends: tuple[Backend, ...]

    @property
    def dtypes(self) -> dict[str, tuple[int, int]]:
        """Tensor types: how many tensors and how many bytes of each, the biggest first."""
        census: dict[str, tuple[int, int]] = {}
        for t in self.tensors:
            n, n_bytes = census.get(t.dtype, (0, 0))
            census[t.dtype] = (n + 1, n_bytes + t.n_bytes)
        return dict(sorted(census.items(), key=lambda item: -item[1][1]))

    def memory_plan(
        self,
        n_ctx: int = 8192,
        *,
        kv_rounding: str = "official",
        kernels: str = "fast",
        prefill_chunk: int = 512,
    ) -> MemoryPlan | None:
        """What a model and one session of n_ctx tokens take; None when the file cannot be run."""
        c = self.config
        if c is None:
            return None
        per_token = c.kv_bytes_per_token(kv_rounding, kernels)
        n_blocks = -(-n_ctx // BLOCK_TOKENS)
        return MemoryPlan(
            n_ctx=n_ctx,
            mapping=self.n_bytes,
            dense=self.n_bytes - self.expert_bytes,
            experts=self.expert_bytes,
            kv=round(n_blocks * BLOCK_TOKENS * per_token),
            kv_fixed=c.kv_fixed_bytes(kv_rounding, kernels),
            kv_per_token=per_token,
            scratch=_scratch_bytes(c, prefill_chunk),
        )

    def to_dict(self, *, tensors: bool = True, n_ctx: int = 8192) -> dict[str, Any]:
        """Everything as plain dictionaries, lists and numbers."""
        plan = self.memory_plan(n_ctx)
        out: dict[str, Any] = {
            "path": str(self.path),
            "version": self.version,
            "n_bytes": self.n_bytes,
            "config": asdict(self.config) if self.config else None,
            "problem": self.problem,
            "bytes_per_token": self.bytes_per_token,
            "dtypes": {k: {"tensors": n, "bytes": b} for k, (n, b) in self.dtypes.items()},
            "memory": asdict(plan) if plan else None,
            "backends": [asdict(b) for b in self.backends],
            "notes": list(self.notes),
            "metadata": {
                k: asdict(v) if isinstance(v, MetadataArray) else v
                for k, v in self.metadata.items()
            },
        }
        if tensors:
            out["tensors"] = [asdict(t) for t in self.tensors]
        return out

    def __str__(self) -> str:
        return file_report(self)


def inspect(path: str | os.PathLike[str] | None = None) -> FileInfo:
    """Read the directory of a GGUF file without loading the model.

    Args:
        path: the file, or its first shard; None: the model inside the package.

    Raises:
        StorageError: the file cannot be read.
        FormatError: the container itself is damaged. A sound file of another model is no error: see
            ``problem``.

    Example:
        >>> import grebe
        >>> info = grebe.inspect()
        >>> info.config.n_layers, info.problem
        (4, None)
    """
    from .model import EMBEDDED_MODEL

    file = EMBEDDED_MODEL if path is None else file_path(path)
    raw = _engine.inspect(file)
    config = model_config(raw["config"]) if raw["config"] is not None else None
    weights: dict[str, Any] = raw["weights"] or {}
    problem: str | None = raw["problem"] or None
    metadata = {
        k: MetadataArray(v["element_type"], v["count"], v["head"]) if isinstance(v, dict) else v
        for k, v in raw["metadata"].items()
    }
    tensors = tuple(TensorInfo(*t) for t in raw["tensors"])
    return FileInfo(
        path=file,
        version=raw["version"],
        n_bytes=raw["file_bytes"],
        metadata=metadata,
        tensors=tensors,
        config=config if problem is None else None,
        problem=problem,
        bytes_per_token=weights.get("bytes_per_token", 0),
        expert_bytes=weights.get("expert_bytes", 0),
        notes=tuple(_notes(raw["file_bytes"], config, metadata, tensors, weights)),
        backends=_backends(problem),
    )


def _backends(problem: str | None) -> tuple[Backend, ...]:
    isas = _engine.available_isas()
    cpu = f"{isas[-1]} kernels (of {', '.join(isas)}), {_engine.usable_cores()} cores"
    return (
        Backend("cpu", problem is None, cpu if problem is None else problem),
        Backend("metal", False, "not in this build"),
        Backend("cuda", False, "not in this build"),
    )


def _notes(
    n_bytes: int,
    config: ModelConfig | None,
    metadata: dict[str, Any],
    tensors: tuple[TensorInfo, ...],
    weights: dict[str, Any],
) -> list[str]:
    notes = []
    unknown = sorted({t.dtype for t in tensors if not t.known})
    if unknown:
        notes.append(f"tensor types that this build does not know: {', '.join(unknown)}")
    if "tokenizer.ggml.tokens" not in metadata:
        notes.append("no tokenizer: usable with token ids only")
    if config is not None and config.n_mtp_layers:
        notes.append(f"{config.n_mtp_layers} draft (MTP) layers: recognised, not used")
    if ignored := weights.get("ignored"):
        notes.append(f"{len(ignored)} tensors are not used, the first is {ignored[0]!r}")
    directory = sum(t.n_bytes for t in tensors)
    if directory > n_bytes:
        notes.append(
            f"tensors share payloads: {size(directory)} of tensors in a file of {size(n_bytes)}"
        )
    memory = physical_memory()
    if memory and n_bytes > memory:
        notes.append(
            f"the file ({size(n_bytes)}) is larger than this machine's memory ({size(memory)}): "
            "experts will be read from disk again and again"
        )
    return notes


def physical_memory() -> int:
    """Bytes of memory of this machine, 0 when unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _scratch_bytes(c: ModelConfig, chunk: int) -> int:
    """Activations of a step of ``chunk`` rows, an estimate; Model.scratch_nbytes is exact."""
    residual = 2 * c.hc_mult * c.hidden_size
    attention = 2 * c.n_heads * c.head_dim + c.q_lora_rank + 4 * c.head_dim
    attention += c.index_n_heads * c.index_head_dim + c.o_groups * c.o_lora_rank + c.index_top_k
    experts = (c.n_experts_per_token + 1) * (2 * c.moe_intermediate_size + c.hidden_size)
    return 4 * chunk * (residual + attention + experts) + 4 * c.vocab_size
