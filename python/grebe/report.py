"""Tables for people: sizes, aligned columns, the report of ``grebe inspect``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .fileinfo import FileInfo

__all__ = ["columns", "file_report", "printable", "size", "tensor_report"]


def size(n_bytes: float) -> str:
    """Decimal units with three digits, as vendors count.

    Example:
        >>> size(584), size(5_861_344), size(86.7e9)
        ('584 B', '5.86 MB', '86.7 GB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            value = n_bytes / scale
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{n_bytes:.0f} B"


def printable(text: str) -> str:
    r"""The text with control characters as escapes: names in a file may try to drive a terminal.

    Example:
        >>> printable("a\x1b[2Jb é")
        'a\\x1b[2Jb é'
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def columns(rows: Iterable[Sequence[object]], *, right: str = "", indent: str = "  ") -> str:
    """Rows as aligned columns of printable text; ``right`` has an "r" where to align right."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if not cells:
        return ""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]

    def line(row: list[str]) -> str:
        fields = (
            cell.rjust(w) if right[i : i + 1] == "r" else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        return (indent + "  ".join(fields)).rstrip()

    return "\n".join(line(row) for row in cells)


def file_report(info: FileInfo, n_ctx: int = 8192) -> str:
    """The text of ``grebe inspect``."""
    parts = [
        f"{printable(str(info.path))}: GGUF version {info.version}, {size(info.n_bytes)}, "
        f"{len(info.tensors)} tensors"
    ]
    c = info.config
    if c is not None:
        kinds = {0: "window", 4: "CSA", 128: "HCA"}
        census = [(kinds[r], c.compress_ratios.count(r)) for r in (0, 4, 128)]
        rows = [
            ("name", c.name or "(none)"),
            ("layers", f"{c.n_layers}: " + ", ".join(f"{n} {kind}" for kind, n in census if n)),
            ("hidden", f"{c.hidden_size} x {c.hc_mult} streams, vocabulary {c.vocab_size}"),
            (
                "attention",
                f"{c.n_heads} heads x {c.head_dim} ({c.rope_dim} rotated), window {c.window_size}, "
                f"q rank {c.q_lora_rank}, output {c.o_groups} x {c.o_lora_rank}",
            ),
            (
                "indexer",
                f"{c.index_n_heads} heads x {c.index_head_dim}, top {c.index_top_k}",
            ),
            (
                "experts",
                f"{c.n_experts_per_token} of {c.n_experts} and {c.n_shared_experts} shared, "
                f"width {c.moe_intermediate_size}, {c.n_hash_layers} hash-routed layers",
            ),
            ("context", f"up to {c.max_context} tokens"),
        ]
        parts += ["\nmodel", columns(rows)]
    else:
        shown = [(k, v) for k, v in info.metadata.items() if k.startswith("general.") and str(v)]
        parts += ["\nmetadata", columns(shown)]
    types = [(t, n, size(b)) for t, (n, b) in info.dtypes.items()]
    parts += ["\ntensor types", columns(types, right="lrr")]
    plan = info.memory_plan(n_ctx)
    if plan is not None:
        rows = [
            ("file, mapped", size(plan.mapping)),
            ("  dense part", size(plan.dense)),
            ("  experts", size(plan.experts)),
            (f"KV at {plan.n_ctx} tokens", f"{size(plan.kv)} ({plan.kv_per_token:.1f} B a token)"),
            ("KV, fixed part", size(plan.kv_fixed)),
            ("scratch, estimate", size(plan.scratch)),
            ("weights read per token", size(info.bytes_per_token)),
        ]
        parts += ["\nmemory", columns(rows)]
    backends = [(b.name, "yes" if b.available else "no", b.detail) for b in info.backends]
    parts += ["\nbackends", columns(backends)]
    if info.problem:
        parts += ["\nproblem", f"  {printable(info.problem)}"]
    if info.notes:
        parts += ["\nnotes", *(f"  {printable(note)}" for note in info.notes)]
    return "\n".join(parts)


def tensor_report(info: FileInfo) -> str:
    """One line per tensor: name, type, shape in GGUF order, size, offset."""
    rows = [
        (t.name, t.dtype, "[" + ", ".join(map(str, t.shape)) + "]", size(t.n_bytes), t.offset)
        for t in info.tensors
    ]
    return columns(rows, right="lllrr")
