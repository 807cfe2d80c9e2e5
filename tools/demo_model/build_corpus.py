"""Build the corpus files from their sources.

    python build_corpus.py --out DIR --books CLASSIC_BOOKS_CLONE --stdlib /usr/lib/python3.11

Writes books, books2 (harder prose) and pycode as `.jsonl.xz`, and the held-out set to DIR/eval: three whole books,
every 40th module, generated documents and graded questions from seeds that training never uses. The generated text
itself is not stored: make_shards.py makes it while training runs.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from random import Random

from corpus.chat import BOS, EOS
from corpus.recall import Filler
from corpus.sources import AUTHORS_MORE, EVAL_BOOKS, HELD_BOOKS, books, documents, stdlib
from corpus.tasks import graded_questions, task_doc
from data import read_documents

SEED = 20261
MORE_BOOKS_CHARS = 40_000_000  # of the second list of authors


def write(path: Path, rows: Iterable[dict]) -> None:
    with (lzma.open if path.suffix == ".xz" else open)(path, "wt", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--books", type=Path)
    p.add_argument("--stdlib", type=Path)
    p.add_argument("--generated", action="store_true", help="only the generated held-out files")
    a = p.parse_args()
    if a.generated:
        write_generated(a.out / "eval")
        return
    held_out = a.out / "eval"
    held_out.mkdir(parents=True, exist_ok=True)
    r = Random(SEED)

    parts: dict[str, list[dict]] = {"books": [], "books2": [], "eval": []}
    n_more = 0
    for path, paragraphs in books(a.books):
        if path in HELD_BOOKS:  # a second held-out set, for whoever wants to test blindly
            continue
        part = "books2" if path.split("/")[0] in AUTHORS_MORE else "books"
        if path in EVAL_BOOKS:
            part = "eval"
        elif part == "books2":
            n = sum(map(len, paragraphs))
            if n_more + n > MORE_BOOKS_CHARS:
                continue
            n_more += n
        parts[part] += [{"s": path, "t": BOS + d + EOS} for d in documents(paragraphs, r)]
    for part in ("books", "books2"):
        r.shuffle(parts[part])
        write(a.out / f"{part}.jsonl.xz", parts[part])
    write(held_out / "books.jsonl", parts["eval"])

    modules = [{"s": "stdlib", "t": BOS + text + EOS} for text in stdlib(a.stdlib)]
    r.shuffle(modules)
    write(a.out / "pycode.jsonl.xz", [m for i, m in enumerate(modules) if i % 40 > 1])
    write(held_out / "pycode.jsonl", modules[1::40])

    write_generated(held_out)


def write_generated(held_out: Path) -> None:
    """The held-out part of the generated text; its quotations come from the held-out books."""
    quotable = [
        p
        for text in read_documents(held_out / "books.jsonl")
        for p in text.removeprefix(BOS).removesuffix(EOS).split("\n\n")
    ]
    r, filler = Random(SEED * 11 + 2), Filler([p for p in quotable if 120 < len(p) < 1200])
    drawn = [task_doc(r, filler) for _ in range(600)]
    write(held_out / "tasks.jsonl", [{"s": kind, "t": text} for kind, text in drawn])
    write(held_out / "graded.jsonl", graded_questions(r, filler))


if __name__ == "__main__":
    main()
