"""What the trained model can do: held-out loss, loss by position, graded questions. Also with the rows ablated."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from attention import AttentionMode
from data import tokenize_part
from model import Model
from tokenizers import Tokenizer

EOS_ID, PAD_ID = 1, 2
MODES = {
    "selected rows": AttentionMode(),
    "all rows": AttentionMode(select=False),
    "no rows": AttentionMode(use_rows=False),
}
POSITION_EDGES = (0, 64, 128, 256, 512, 1024, 2048, 4096, 6144, 8192)


@contextmanager
def inference(model: Model) -> Iterator[None]:
    """Evaluation mode, no gradients, no compiled code (its shapes are those of training)."""
    training = model.training
    model.eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield
    model.train(training)


def held_out_parts(folder: Path, tokenizer: Path, cache: Path) -> dict[str, np.ndarray]:
    cache = cache / "eval"
    cache.mkdir(parents=True, exist_ok=True)
    return {p: tokenize_part(folder, p, tokenizer, cache) for p in ("books", "pycode", "tasks")}


def token_losses(
    model: Model, ids: torch.Tensor, mode: AttentionMode, dtype: torch.dtype
) -> torch.Tensor:
    """Cross entropy of every next token, f32[n_windows, length]; ids i64[n_windows, length + 1]."""
    hidden = model(ids[:, :-1], mode, draft=False, dtype=dtype).hidden
    rows = [
        F.cross_entropy(model.logits(h), t, reduction="none")
        for h, t in zip(hidden, ids[:, 1:], strict=True)
    ]
    return torch.stack(rows)


def windows(tokens: np.ndarray, length: int, n: int, device: torch.device) -> torch.Tensor:
    count = min(n, (len(tokens) - 1) // length)
    ids = np.stack([tokens[i * length : (i + 1) * length + 1] for i in range(count)])
    return torch.from_numpy(ids.astype(np.int64)).to(device)


def held_out_loss(
    model: Model, parts: dict[str, np.ndarray], length: int, n_windows: int, dtype: torch.dtype
) -> dict[str, float]:
    """Nats a token, windows of `length` from the start of each part."""
    device = model.embed.device
    out = {}
    with inference(model):
        for part, tokens in parts.items():
            if len(tokens) <= length:
                continue
            batches = windows(tokens, length, n_windows, device).split(max(1, 32768 // length))
            losses = [token_losses(model, ids, MODES["selected rows"], dtype) for ids in batches]
            out[part] = round(torch.cat(losses).mean().item(), 4)
    return out


def by_position(
    model: Model, parts: dict[str, np.ndarray], length: int, dtype: torch.dtype
) -> dict[str, dict[str, list[float]]]:
    """Mean loss between POSITION_EDGES for each part and each of MODES."""
    device = model.embed.device
    edges = [e for e in POSITION_EDGES if e <= length]
    out: dict[str, dict[str, list[float]]] = {"edges": {"tokens": [float(e) for e in edges]}}
    with inference(model):
        for part, tokens in parts.items():
            if len(tokens) <= length:
                continue
            ids = windows(tokens, length, 32, device)
            out[part] = {}
            for name, mode in MODES.items():
                losses = [token_losses(model, x, mode, dtype) for x in ids.split(2)]
                mean = torch.cat(losses).mean(0)
                out[part][name] = [
                    round(mean[a:b].mean().item(), 4) for a, b in itertools.pairwise(edges)
                ]
    return out


def graded(
    model: Model,
    file: Path,
    tokenizer_file: Path,
    mode: AttentionMode,
    dtype: torch.dtype,
    per_kind: int,
    max_tokens: int = 65536,
    kinds: tuple[str, ...] = (),
) -> dict[str, float]:
    """Share of answers that greedy decoding would give exactly.

    Every token of the answer and the end of the turn must be the argmax after the right tokens before it, which is
    the same as decoding greedily and comparing.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    items: list[tuple[str, list[int], int]] = []
    seen: dict[str, int] = defaultdict(int)
    with file.open(encoding="utf-8") as f:
        for line in f:
            d = json.loads(line)
            if kinds and d["kind"] not in kinds:
                continue
            kind = d["kind"] + (f"@{d['chars']}" if "chars" in d else "")
            if seen[kind] < per_kind:
                seen[kind] += 1
                n_prompt = len(tokenizer.encode(d["prompt"], add_special_tokens=False).ids)
                ids = tokenizer.encode(d["prompt"] + d["answer"], add_special_tokens=False).ids
                items.append((kind, [*ids, EOS_ID], n_prompt))
    items.sort(key=lambda item: len(item[1]))
    right: dict[str, int] = defaultdict(int)
    with inference(model):
        while items:
            longest = len(items[min(63, len(items) - 1)][1])
            n = max(1, min(64, max_tokens // longest))
            group, items = items[:n], items[n:]
            longest = max(len(ids) for _, ids, _ in group)
            padded = [ids + [PAD_ID] * (longest - len(ids)) for _, ids, _ in group]
            x = torch.tensor(padded, device=model.embed.device)
            hidden = model(x[:, :-1], mode, draft=False, dtype=dtype).hidden
            for row, (kind, ids, n_prompt) in enumerate(group):
                best = model.logits(hidden[row, n_prompt - 1 : len(ids) - 1]).argmax(-1)
                right[kind] += bool((best == x[row, n_prompt : len(ids)]).all())
    return {kind: round(right[kind] / n, 3) for kind, n in sorted(seen.items())}
