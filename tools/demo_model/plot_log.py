"""The picture of a training run: losses over tokens, and loss by position with and without compressed rows.

python plot_log.py train_log.jsonl loss.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def smooth(y: list[float], n: int = 15) -> np.ndarray:
    """Mean of n neighbours, fewer at the ends."""
    kernel = np.ones(min(n, len(y)))
    return np.convolve(y, kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same")


def draw_losses(ax: plt.Axes, rows: list[dict]) -> None:
    steps = [r for r in rows if "loss" in r]
    tokens = np.array([r["tokens"] for r in steps]) / 1e6
    ax.plot(tokens, [r["loss"] for r in steps], color="0.8", lw=0.5)
    ax.plot(tokens, smooth([r["loss"] for r in steps]), label="next token")
    ax.plot(tokens, smooth([r["draft_loss"] for r in steps]), label="draft block")
    per_step = steps[-1]["tokens"] / steps[-1]["step"] / 1e6
    held = [r for r in rows if "held_out" in r]
    for part in held[0]["held_out"] if held else ():
        x = [r["step"] * per_step for r in held]
        ax.plot(
            x, [r["held_out"][part] for r in held], "o--", ms=3, lw=0.8, label=f"held-out {part}"
        )
    long = next((r for r in steps if r["seq"] > steps[0]["seq"]), None)
    if long:
        ax.axvline(long["tokens"] / 1e6, color="0.6", lw=0.8, ls=":")
        ax.text(long["tokens"] / 1e6, 5.6, f" {long['seq']} tokens", fontsize=8)
    ax.set(xlabel="million tokens", ylabel="nats per token", ylim=(1, 6), title="training")
    ax.legend(fontsize=8)
    kl = ax.twinx()
    kl.plot(tokens, smooth([r["index_kl"] for r in steps]), color="tab:gray", lw=0.8)
    kl.set(ylabel="indexer KL (gray)", ylim=(0, 3))


def draw_positions(ax: plt.Axes, rows: list[dict]) -> None:
    table = next(r["loss_by_position"] for r in rows if "loss_by_position" in r)
    edges = table["edges"]["tokens"]
    middle = np.sqrt(np.maximum(edges[:-1], 16) * np.array(edges[1:]))
    for part, color in (("books", "tab:blue"), ("pycode", "tab:orange"), ("tasks", "tab:green")):
        for mode, style in (("selected rows", "-"), ("all rows", ":"), ("no rows", "--")):
            ax.plot(middle, table[part][mode], style, color=color, label=f"{part}, {mode}")
    ax.set(
        xscale="log", xlabel="position", ylabel="nats per token", title="held-out loss by position"
    )
    ax.legend(fontsize=7, loc="upper right", ncols=3)
    ax.set_ylim(top=4.6)


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    figure, axes = plt.subplots(1, 2, figsize=(13, 5))
    draw_losses(axes[0], rows)
    draw_positions(axes[1], rows)
    figure.tight_layout()
    figure.savefig(target, dpi=90)


if __name__ == "__main__":
    main()
