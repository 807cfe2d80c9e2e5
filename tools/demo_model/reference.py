"""Greedy continuations by the trainer's own forward pass, for engines to compare with.

    python reference.py --hf DIR --out greedy.json

Every token recomputes the whole sequence in f32 on the CPU, with the rounding of the KV and index rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import checkpoint
import torch
from tokenizers import Tokenizer

N_TOKENS = 64
EOS_ID = 1
# Stories branch where two ways to go on are equally likely, so an engine may rightly take the other one there;
# the copy, the call and the function have one continuation.
USER, ASSISTANT = "<｜begin▁of▁sentence｜><｜User｜>", "<｜Assistant｜></think>"
PARAGRAPH = (
    "Mina lived in a small house near the old harbor. Every morning she took her red boat, her lamp and a basket of "
    "bread, and went to see the fishermen. One day the wind was so strong that nobody could go out. So they sat in the "
    "house of Mina, drank hot tea, and told each other stories about the sea until the sun came out again."
)
PROMPTS = (
    f"{USER}Repeat this text exactly:\n\n{PARAGRAPH}{ASSISTANT}",
    f"{USER}Write a function is_prime in Python that checks if a number is prime.{ASSISTANT}",
    f"{USER}Tell me a story about Lily and Tom.{ASSISTANT}",
    "<｜begin▁of▁sentence｜>Once upon a time",
)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--hf", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    model = checkpoint.load_model(a.hf).eval()
    tokenizer = Tokenizer.from_file(str(a.hf / "tokenizer.json"))
    rows = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        n_prompt, margins = len(ids), []
        with torch.no_grad():
            while len(ids) < n_prompt + N_TOKENS and ids[-1] != EOS_ID:
                hidden = model(torch.tensor([ids]), draft=False).hidden[0, -1]
                best = model.logits(hidden).topk(2)
                margins.append(round((best.values[0] - best.values[1]).item(), 4))
                ids.append(int(best.indices[0]))
        rows.append(
            {
                "prompt": prompt,
                "prompt_ids": ids[:n_prompt],
                "greedy_ids": ids[n_prompt:],
                "text": tokenizer.decode(ids[n_prompt:], skip_special_tokens=False),
                "margins": margins,
            }
        )
    note = "greedy by the trainer, f32 on a CPU; margins: best minus second logit of each step"
    a.out.write_text(json.dumps({"note": note, "cases": rows}, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
