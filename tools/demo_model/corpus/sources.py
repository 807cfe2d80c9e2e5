"""Books in the public domain, cleaned, and modules of the Python standard library."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

AUTHORS_YOUNG = {  # read first; every author died before 1956
    "Aesop",
    "Anna Sewell",
    "Beatrix Potter",
    "Carlo Collodi",
    "Edith Nesbit",
    "Frances Hodgson Burnett",
    "George MacDonald",
    "Hans Christian Andersen",
    "Howard Pyle",
    "Hugh Lofting",
    "Johann David Wyss",
    "Johanna Spyri",
    "Kenneth Grahame",
    "L. Frank Baum",
    "Lewis Carroll",
    "Louisa May Alcott",
    "Lucy Maud Montgomery",
    "Mark Twain",
    "Oscar Wilde",
    "Robert Louis Stevenson",
    "Rudyard Kipling",
    "The Brothers Grimm",
    "Abbie Farwell Brown",
    "Horatio Alger",
    "James Stephens",
    "Lafcadio Hearn",
    "R.M. Ballantyne",
    "Henry van Dyke",
    "Thomas Bulfinch",
    "Jack London",
    "H.G. Wells",
    "Jules Verne",
    "Arthur Conan Doyle",
    "Jerome K. Jerome",
    "G.K. Chesterton",
    "O. Henry",
    "W. W. Jacobs",
    "Anthony Hope",
    "John Buchan",
    "Booth Tarkington",
    "Edward Everett Hale",
    "Richard Jefferies",
    "Emma Orczy",
    "Ernest Shackleton",
    "Booker T. Washington",
    "Edgar Rice Burroughs",
    "H. Rider Haggard",
    "Zane Grey",
    "Anton Chekhov",
    "Leo Tolstoy",
    "Stephen Crane",
    "Bram Stoker",
    "Maurice Leblanc",
    "Gaston Leroux",
    "Sabine Baring-Gould",
    "Lord Dunsany",
    "Edgar Wallace",
    "Nellie Bly",
    "Willa Cather",
    "Kate Chopin",
    "Washington Irving",
}
AUTHORS_YOUNG -= {"Lord Dunsany"}  # died 1957
AUTHORS_MORE = {
    "Charles Dickens",
    "Jane Austen",
    "Charlotte Bronte",
    "Emily Bronte",
    "Anne Bronte",
    "George Eliot",
    "Elizabeth Gaskell",
    "Thomas Hardy",
    "Wilkie Collins",
    "Nathaniel Hawthorne",
    "Edgar Allan Poe",
    "Mary Wollstonecraft Shelley",
    "Daniel Defoe",
    "Jonathan Swift",
    "Alexandre Dumas",
    "Victor Hugo",
    "Joseph Conrad",
    "Anthony Trollope",
    "Henry David Thoreau",
    "Benjamin Franklin",
    "Frederick Douglass",
    "Solomon Northup",
    "Walter Scott",
    "Edith Wharton",
    "Fyodor Dostoyevsky",
    "Ivan Turgenev",
    "Alexander Pushkin",
    "Nikolai Gogol",
}
SKIP = re.compile(r"tao te|poems|poetry|sonnets|science fiction|christian science", re.I)
EVAL_BOOKS = {
    "Edith Nesbit/Five Children and It.md",
    "Jack London/White Fang.md",
    "Hugh Lofting/The Story of Doctor Dolittle.md",
}  # public held-out set
HELD_BOOKS = {
    "Edith Nesbit/The Railway Children.md",
    "L. Frank Baum/Ozma of Oz.md",
    "Arthur Conan Doyle/The Sign of the Four.md",
    "Arthur Conan Doyle/The Sign of Four.md",
    "Jane Austen/Persuasion.md",
}


# paragraphs with the period's slurs and ethnic stereotypes are left out: a shipped demo must not repeat them
SLUR = re.compile(
    r"\b(nigg(er|a)\w*|dark(y|ies|ey|eys)|coons?|chinam[ae]n|chinks?|japs?|squaws?|half-breeds?|half-castes?|savages?|kaffirs?|hottentots?|pickaninn\w*|mulatto(es)?|quadroons?|gyps(y|ies)|redskins?|red-?skins?|jew|jews|jewess|blackamoors?|negro\w*|negress\w*|wenches|whores?|rape[ds]?)\b",
    re.I,
)


STRAIGHT = str.maketrans(
    {
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
        "—": "--",
        "–": "-",
        "…": "...",
        "\u00a0": " ",
        "\t": " ",
    }
)
NOT_IN_STDLIB = frozenset(
    [
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "site-packages",
        "__pycache__",
        "turtledemo",
        "idle_test",
        "ensurepip",
        "pydoc_data",
        "encodings",
        "lib-dynload",
        "msilib",
    ]
)


def clean_book(text: str) -> list[str]:
    """Paragraphs of a transcription in plain ASCII punctuation; none if it may still be in copyright."""
    text = text.replace("\r", "")
    title = re.search(r"^# Title:\s*(.+)$", text, re.M)
    year = re.search(r"^## Year:\s*(\d{4})", text, re.M)
    # The Potter collection carries the date of its edition; the stories are from 1902 to 1918.
    if year and int(year[1]) > 1930 and not (title and "Beatrix Potter" in title[1]):
        return []
    rule = re.search(r"^-{5,}\s*$", text, re.M)
    text = text[rule.end() :] if rule else text
    text = re.sub(
        r"(?im)^.*(project gutenberg|gutenberg|e-?text|transcriber|www\.|http).*$", "", text
    )
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)|\[\d+\]|\[Illustration[^\]]*\]", "", text)
    text = re.sub(r"[_*]{1,3}([^_*\n]+)[_*]{1,3}", r"\1", text).translate(STRAIGHT)
    paragraphs = []
    for p in re.split(r"\n\s*\n", text):
        p = re.sub(r" +", " ", re.sub(r"\s*\n\s*", " ", p).strip())
        if p and not re.fullmatch(r"[\W\d_]+", p) and not SLUR.search(p):
            paragraphs.append(p)
    return paragraphs


def books(repository: Path) -> Iterator[tuple[str, list[str]]]:
    """(path, paragraphs) of every book of a listed author, from a clone of `classic-books-markdown`."""

    def git(*args: str) -> bytes:
        command = ["git", "-C", str(repository), "-c", "core.quotepath=off", *args]
        return subprocess.run(command, capture_output=True, check=True).stdout

    for path in git("ls-tree", "-r", "--name-only", "HEAD").decode().splitlines():
        author = path.split("/")[0]
        if author not in AUTHORS_YOUNG | AUTHORS_MORE or SKIP.search(path):
            continue
        paragraphs = clean_book(git("show", f"HEAD:{path}").decode("utf-8", "replace"))
        n = sum(map(len, paragraphs))
        n_foreign = sum(c > "\u024f" for p in paragraphs for c in p)
        if n > 4000 and n_foreign < n / 500:
            yield path, paragraphs


def documents(paragraphs: list[str], r: Random) -> Iterator[str]:
    """Pieces of 6,000 to 40,000 characters."""
    piece, n, limit = [], 0, r.randrange(6000, 40000)
    for p in paragraphs:
        piece.append(p)
        n += len(p)
        if n > limit:
            yield "\n\n".join(piece)
            piece, n, limit = [], 0, r.randrange(6000, 40000)
    if n > 500:
        yield "\n\n".join(piece)


def stdlib(folder: Path) -> Iterator[str]:
    """Modules of 400 to 200,000 characters."""
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder).parts
        skipped = NOT_IN_STDLIB & set(inside) or any(x.startswith("config-") for x in inside)
        if skipped or file.name.startswith("_sysconfigdata"):
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if 400 < len(text) < 200000:
            yield text
