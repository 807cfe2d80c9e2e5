"""Train the demo model on one CUDA GPU (or, for tests, on a CPU).

    python make_shards.py --data DIR --tokenizer tok8k.json --cache CACHE &
    python train.py --data DIR --eval DIR/eval --tokenizer tok8k.json --cache CACHE --out OUT

Every choice follows from --seed, and step i draws its windows from (seed, i): a run that was stopped, by
--call-seconds or by a lost machine, and goes on with --resume sees the same data as one that was not. Where the
machine is too slow for --steps within --seconds, the schedule follows the clock instead and still ends in full.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import checkpoint
import evaluate
import numpy as np
import torch
from attention import AttentionMode
from config import PRESETS
from data import Shards, TokenPool, tokenize_part
from export_hf import export
from model import Model
from moe import hash_table
from muon import make_optimizers

BOOK_PARTS = ("books", "books2", "pycode")
# Share of the windows drawn from each part.
WEIGHTS = {"tasks": 0.64, "books": 0.18, "books2": 0.12, "pycode": 0.06}
BIAS_STEP = 1e-3  # of the router bias that balances the experts


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="books, books2, pycode as .jsonl(.xz)")
    p.add_argument("--eval", type=Path, required=True, help="the held-out set")
    p.add_argument("--tokenizer", type=Path, required=True)
    p.add_argument("--cache", type=Path, required=True, help="token files; shards appear here")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--preset", default="demo", choices=sorted(PRESETS))
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--steps", type=int, default=6000)
    p.add_argument("--tokens", type=int, default=65536, help="tokens a step")
    p.add_argument("--micro", type=int, default=65536, help="tokens a forward pass")
    p.add_argument("--seq", type=int, default=2048)
    p.add_argument("--long-seq", type=int, default=8192)
    p.add_argument(
        "--long-from", type=float, default=0.75, help="share of the steps before --long-seq"
    )
    p.add_argument(
        "--select-from", type=float, default=0.15, help="share of the steps before top-k"
    )
    p.add_argument("--dense", type=float, default=0.25, help="share of windows with all rows then")
    p.add_argument("--lr", type=float, default=0.006, help="Muon; the update has RMS 0.2 * lr")
    p.add_argument("--adam-lr", type=float, default=3e-3)
    p.add_argument("--draft-weight", type=float, default=0.3)
    p.add_argument("--index-weight", type=float, default=0.1)
    p.add_argument("--shards", type=int, default=72)
    p.add_argument("--first-shards", type=int, default=8)
    p.add_argument("--steps-per-shard", type=int, default=30)
    p.add_argument("--eval-every", type=int, default=1000)
    p.add_argument("--compile", action="store_true")
    p.add_argument("--recompute", action="store_true", help="less memory, a third more time")
    p.add_argument("--call-seconds", type=float, default=1e9, help="stop then, state saved")
    p.add_argument("--seconds", type=float, default=1e9, help="in all, if --steps take longer")
    p.add_argument("--save-every", type=float, default=180, help="seconds between saved states")
    p.add_argument("--warm", type=Path, help="an exported checkpoint to begin from")
    p.add_argument("--warm-step", type=int, default=0, help="the step at which it was exported")
    p.add_argument("--warm-seconds", type=float, default=0, help="what it took until then")
    p.add_argument("--resume", action="store_true", help="go on from OUT/last.pt")
    p.add_argument("--graded", type=int, default=1000, help="graded questions of a kind at the end")
    return p.parse_args()


class Trainer:
    """Model, optimisers, data and log of one run."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a = a
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        torch.manual_seed(a.seed)
        torch.set_float32_matmul_precision("high")
        a.out.mkdir(parents=True, exist_ok=True)
        a.cache.mkdir(parents=True, exist_ok=True)
        self.c = PRESETS[a.preset]
        self.pool = TokenPool(WEIGHTS, self.device)
        frequency = np.zeros(self.c.vocab_size)
        for part in BOOK_PARTS:
            tokens = tokenize_part(a.data, part, a.tokenizer, a.cache)
            self.pool.add(part, tokens)
            frequency += WEIGHTS[part] * np.bincount(tokens, minlength=len(frequency)) / len(tokens)
        self.shards = Shards(a.cache, a.shards, a.first_shards, a.steps_per_shard)
        self.shards.add_until(0, self.pool)
        tokens = np.load(a.cache / "tasks-000.npy")
        frequency += WEIGHTS["tasks"] * np.bincount(tokens, minlength=len(frequency)) / len(tokens)

        self.model = Model(self.c).to(self.device)
        self.model.recompute = a.recompute
        for i, block in enumerate(self.model.blocks):
            if block.ffn.hashed:
                block.ffn.tid2eid.copy_(hash_table(self.c, frequency, i))
        self.optimizers = make_optimizers(self.model, a.lr, a.adam_lr)
        self.peaks = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        named = list(self.model.named_parameters())
        self.index_parameters = [p for name, p in named if ".indexer." in name]
        self.language_parameters = [p for name, p in named if ".indexer." not in name]
        self.step, self.n_tokens, self.seconds = a.warm_step, 0, a.warm_seconds
        if a.warm:
            self.model.load_state_dict(checkpoint.load_model(a.warm).state_dict())
        self.first_step = a.warm_step  # of these optimiser states, which want a slow start
        self.compiling = 0.0  # seconds, part of self.seconds
        if a.resume:
            self.load()
        if a.compile:
            self.model.compile_parts()
        self.log_file = (a.out / "train_log.jsonl").open("a" if a.resume else "w")
        n = sum(p.numel() for p in self.model.parameters())
        options = {k: v.name if isinstance(v, Path) else v for k, v in vars(a).items()}
        self.log({"parameters": n, "options": options})

    def log(self, row: dict) -> None:
        print(json.dumps(row), flush=True)
        self.log_file.write(json.dumps(row) + "\n")
        self.log_file.flush()

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "config": asdict(self.c),
            "step": self.step,
            "n_tokens": self.n_tokens,
            "seconds": self.seconds,
            "first_step": self.first_step,
            "compiling": self.compiling,
        }
        beside = self.a.out / "last.part.pt"
        torch.save(state, beside)
        beside.rename(self.a.out / "last.pt")

    def load(self) -> None:
        state = torch.load(self.a.out / "last.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for o, s in zip(self.optimizers, state["optimizers"], strict=True):
            o.load_state_dict(s)
        self.step, self.n_tokens = state["step"], state["n_tokens"]
        self.seconds, self.first_step = state["seconds"], state["first_step"]
        self.compiling = state["compiling"]

    def export(self) -> None:
        """The checkpoint so far, under its name only when it is whole."""
        beside, final = self.a.out / "hf.part", self.a.out / "hf"
        shutil.rmtree(beside, ignore_errors=True)
        export(self.model, self.a.tokenizer, beside)
        (beside / "step").write_text(f"{self.step} {self.seconds:.0f}\n")
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)

    def run(self) -> bool:
        """Train until the last step (True) or until the call's time is over (False)."""
        a = self.a
        start, before, saved = time.monotonic(), self.seconds, time.monotonic()
        self.model.train()
        if a.compile:
            self.compile_ahead()
            self.seconds = before + time.monotonic() - start
        while self.done() < 1:
            if time.monotonic() - saved > a.save_every:
                self.save()
                self.export()
                saved = time.monotonic()
            if time.monotonic() - start > a.call_seconds:
                self.save()
                return False
            row = self.train_step()
            self.step += 1
            if self.step % 10 == 0 or self.step <= 3:
                row = {k: round(v.item(), 4) for k, v in row.items()}  # waits for the GPU
                self.seconds = before + time.monotonic() - start
                rate = round(self.n_tokens / self.seconds)
                self.log(
                    {"step": self.step, "seconds": round(self.seconds, 1), "tokens": self.n_tokens}
                    | row
                    | {"seq": self.seq_length(), "tok_per_s": rate}
                    | (
                        {"peak_gb": torch.cuda.max_memory_allocated() // 10**9}
                        if self.on_gpu
                        else {}
                    )
                )
                if not math.isfinite(row["loss"]):
                    raise SystemExit("the loss is not finite")
            if self.step % a.eval_every == 0 and self.done() < 1:
                self.log({"step": self.step, "held_out": self.held_out(1024, 64)})
            self.seconds = before + time.monotonic() - start
        self.save()
        return True

    def seq_length(self) -> int:
        return self.a.long_seq if self.done() >= self.a.long_from else self.a.seq

    def done(self) -> float:
        """Share of the run that lies behind: of its steps or of its time, whichever is more."""
        of_time = (self.seconds - self.compiling) / max(1.0, self.a.seconds - self.compiling)
        return max(self.step / self.a.steps, of_time)

    def learning_rate(self) -> float:
        """Share of the peak: short rise, constant, linear fall to 2 % from 40 % of the steps on."""
        rise = min(1.0, (self.step - self.first_step + 1) / 100)
        return rise * min(1.0, 0.02 + 0.98 * max(0.0, 1 - self.done()) / 0.6)

    def train_step(self) -> dict[str, torch.Tensor]:
        a, model = self.a, self.model
        self.shards.add_until(self.step, self.pool)
        for o, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(o.param_groups, peaks, strict=True):
                group["lr"] = peak * self.learning_rate()
        rng = np.random.default_rng([a.seed, self.step])
        dense_share = a.dense if self.done() >= a.select_from else 1.0
        sums, loads = self.accumulate(rng, self.seq_length(), dense_share)
        # Clipped apart: a burst of the indexer's loss must not scale the language gradient down.
        norm = torch.nn.utils.clip_grad_norm_(self.language_parameters, 1.0)
        torch.nn.utils.clip_grad_norm_(self.index_parameters, 1.0)
        for o in self.optimizers:
            o.step()
        model.zero_grad(set_to_none=True)
        self.balance(loads)
        return {"loss": sums[0], "draft_loss": sums[1], "index_kl": sums[2], "grad_norm": norm}

    def accumulate(
        self, rng: np.random.Generator, length: int, dense_share: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of one step's windows -> the three losses, tokens per expert of every block."""
        a, model = self.a, self.model
        n_micro = max(1, a.tokens // a.micro)
        n_windows = max(1, a.tokens // n_micro // length)
        sums, loads = torch.zeros(3, device=self.device), None
        for _ in range(n_micro):
            ids = self.pool.windows(rng, n_windows, length + 1)
            dense = torch.from_numpy(rng.random(n_windows) < dense_share).to(self.device)
            out = model(ids[:, :-1], AttentionMode(dense=dense), dtype=self.dtype)
            loss = model.loss(out.hidden, ids[:, 1:])
            draft = loss.new_zeros(()) if out.draft is None else model.loss(out.draft, ids[:, 2:])
            index = loss.new_zeros(()) if out.index_loss is None else out.index_loss
            total = loss + a.draft_weight * draft + a.index_weight * index
            (total / n_micro).backward()
            sums += torch.stack([loss, draft, index]).detach() / n_micro
            micro_loads = torch.stack(out.loads).detach()
            loads = micro_loads if loads is None else loads + micro_loads
            self.n_tokens += n_windows * length
        return sums, loads

    def compile_ahead(self) -> None:
        """Compile for both lengths before the schedule begins, which would else skip what it takes."""
        start, n_tokens = time.monotonic(), self.n_tokens
        self.model.rotations(self.a.long_seq, self.device)  # one table for both
        for length in (self.a.seq, self.a.long_seq):
            if length == self.a.long_seq or self.done() < self.a.long_from:
                sums, _ = self.accumulate(np.random.default_rng(0), length, 0.5)
                sums.tolist()  # waits for the GPU
                self.model.zero_grad(set_to_none=True)
        self.n_tokens = n_tokens
        self.compiling += time.monotonic() - start
        self.log({"compiled": round(time.monotonic() - start, 1)})

    @torch.no_grad()
    def balance(self, loads: torch.Tensor) -> None:
        """Nudge the router bias of every expert towards the mean load."""
        blocks = [*self.model.blocks] + ([self.model.mtp.block] if self.model.mtp else [])
        for block, load in zip(blocks, loads, strict=True):
            if not block.ffn.hashed:
                block.ffn.bias += BIAS_STEP * torch.sign(load.mean() - load)

    def held_out(self, length: int, n_windows: int) -> dict[str, float]:
        parts = evaluate.held_out_parts(self.a.eval, self.a.tokenizer, self.a.cache)
        return evaluate.held_out_loss(self.model, parts, length, n_windows, self.dtype)

    def finish(self) -> None:
        """Evaluate the trained model; every figure goes to the log."""
        a = self.a
        self.log({"held_out_final": self.held_out(1024, 256)})
        parts = evaluate.held_out_parts(a.eval, a.tokenizer, a.cache)
        self.log(
            {"loss_by_position": evaluate.by_position(self.model, parts, a.long_seq, self.dtype)}
        )
        for use_rows in (True, False):
            mode = AttentionMode(use_rows=use_rows)
            score = evaluate.graded(
                self.model, a.eval / "graded.jsonl", a.tokenizer, mode, self.dtype, a.graded
            )
            self.log({"graded" if use_rows else "graded_without_rows": score})
        trained_top_k = self.c.index_top_k
        for top_k in (256, 512, 10**9):
            self.c.index_top_k = top_k
            score = evaluate.graded(
                self.model,
                a.eval / "graded.jsonl",
                a.tokenizer,
                AttentionMode(),
                self.dtype,
                a.graded,
                kinds=("recall",),
            )
            self.log({"graded_with_top_k": top_k if top_k < 10**9 else "all", "recall": score})
        self.c.index_top_k = trained_top_k


def main() -> None:
    a = parse_args()
    trainer = Trainer(a)
    done = trainer.run()
    trainer.export()
    if not done:
        raise SystemExit(75)  # there is more to do: with --resume
    trainer.finish()


if __name__ == "__main__":
    main()
