"""Compare grebe, running the GGUF file, with the trainer.

    python check_engine.py --gguf grebe-demo.gguf --greedy greedy.json --eval DIR --tokenizer tok8k.json

Prints the greedy agreement with reference.py's tokens, held-out loss (windows of 1024 tokens, as train.py reports
it) and the share of graded questions that greedy decoding answers exactly.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import grebe
import numpy as np
from tokenizers import Tokenizer

EOS_ID = 1


def greedy(model: grebe.Model, file: Path) -> None:
    for case in json.loads(file.read_text())["cases"]:
        want = case["greedy_ids"]
        with model.session(n_ctx=1024) as session:
            generation = session.generate(case["prompt_ids"], max_tokens=len(want))
            for _ in generation:
                pass
            got = list(generation.tokens)
        same = next(
            (i for i, (x, y) in enumerate(zip(got, want, strict=False)) if x != y), len(want)
        )
        margin = "" if same == len(want) else f", margin there {case['margins'][same]}"
        print(f"greedy: {same} of {len(want)} tokens equal{margin}: {case['prompt'][-40:]!r}")


def loss(session: grebe.Session, ids: list[int]) -> np.ndarray:
    logits = session.evaluate(ids[:-1]).astype(np.float64)
    top = logits.max(1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
    return log_sum - logits[np.arange(len(logits)), ids[1:]]


def held_out(model: grebe.Model, folder: Path, tokenizer: Tokenizer, n_windows: int) -> None:
    for part in ("books", "pycode", "tasks"):
        ids: list[int] = []
        with (folder / f"{part}.jsonl").open(encoding="utf-8") as f:
            for line in f:
                ids += tokenizer.encode(json.loads(line)["t"], add_special_tokens=False).ids
                if len(ids) > n_windows * 1024:
                    break
        losses = []
        for i in range(min(n_windows, (len(ids) - 1) // 1024)):
            with model.session(n_ctx=1024) as session:
                losses.append(loss(session, ids[i * 1024 : (i + 1) * 1024 + 1]))
        mean = float(np.concatenate(losses).mean())
        print(f"held-out {part}: {mean:.4f} nats a token, perplexity {np.exp(mean):.2f}")


def graded(
    model: grebe.Model, file: Path, tokenizer: Tokenizer, per_kind: int, max_chars: int
) -> None:
    right: dict[str, int] = defaultdict(int)
    seen: dict[str, int] = defaultdict(int)
    with file.open(encoding="utf-8") as f:
        for line in f:
            d = json.loads(line)
            kind = d["kind"] + (f"@{d['chars']}" if "chars" in d else "")
            if d.get("chars", 0) > max_chars or seen[kind] >= per_kind:
                continue
            seen[kind] += 1
            prompt = tokenizer.encode(d["prompt"], add_special_tokens=False).ids
            want = tokenizer.encode(d["prompt"] + d["answer"], add_special_tokens=False).ids
            want = [*want[len(prompt) :], EOS_ID]
            with model.session(n_ctx=len(prompt) + len(want) + 8) as session:
                generation = session.generate(prompt, max_tokens=len(want))
                for _ in generation:
                    pass
                got = list(generation.tokens)
            right[kind] += got in (want, want[:-1])  # the end token itself may be left out
    for kind, n in sorted(seen.items()):
        print(f"graded {kind}: {right[kind]} of {n}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--gguf", type=Path, required=True)
    p.add_argument("--greedy", type=Path)
    p.add_argument("--eval", type=Path)
    p.add_argument("--tokenizer", type=Path)
    p.add_argument("--windows", type=int, default=16)
    p.add_argument("--per-kind", type=int, default=20)
    p.add_argument("--max-chars", type=int, default=8000)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    model = grebe.Model.load(a.gguf, backend="cpu", n_threads=a.threads)
    print(model)
    if a.greedy:
        greedy(model, a.greedy)
    if a.eval:
        tokenizer = Tokenizer.from_file(str(a.tokenizer))
        held_out(model, a.eval, tokenizer, a.windows)
        graded(model, a.eval / "graded.jsonl", tokenizer, a.per_kind, a.max_chars)


if __name__ == "__main__":
    main()
