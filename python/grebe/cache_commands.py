"""What ``grebe cache`` does: shows, checks and empties the directory of a KV cache.

The words of the output: a root is a model and its numerics, a block holds 512 tokens, an anchor is
a state that a session can go on from. docs/kv-store.md describes them.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import GrebeError, InvalidArgumentError, StorageError
from .progress import ProgressBar
from .report import columns, printable, size

if TYPE_CHECKING:
    import argparse

    from ._engine import Store

__all__ = ["add_parser", "ls", "rm", "stats", "verify"]

Record = dict[str, Any]

MIN_ID_DIGITS = 6
SHOWN_ID_DIGITS = 12
# Less would have maintain() write small manifests again and again.
MIN_BUDGET = 1 << 20


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``cache`` and its four commands."""
    cache = subparsers.add_parser(
        "cache",
        help="what grebe run --cache has stored",
        description="Shows, checks and empties the directory of a KV cache.",
    )
    commands = cache.add_subparsers(dest="cache_command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        parser.set_defaults(run=run)
        parser.add_argument("directory", metavar="DIR")
        return parser

    for name, run, text in (
        ("ls", ls, "models, and the states that sessions can go on from"),
        ("stats", stats, "numbers of the whole directory"),
    ):
        add(name, run, text).add_argument("--json", action="store_true")
    add("verify", verify, "read and check everything, and drop what is damaged")
    parser = add("rm", rm, "drop records; asks nothing")
    parser.add_argument(
        "ids",
        nargs="*",
        metavar="ID",
        help=f"first {MIN_ID_DIGITS} or more digits of a record as ls shows them: it goes, with "
        "what follows it and the blocks that nothing else needs",
    )
    parser.add_argument(
        "--model", metavar="PREFIX", help="all of the models whose fingerprint begins so"
    )
    parser.add_argument("--all", action="store_true", help="everything")


# ------------------------------------------------------------------ the directory


def _reader(directory: str) -> Store:
    """An error when it is no store. Never makes one."""
    from . import _engine

    return _engine.Store(directory, read_only=True)


def _writer(directory: str) -> Store:
    """Has the right to write, or is a reader since another process has it."""
    from . import _engine

    reader = _reader(directory)  # no store: an error, and not a new directory
    file_bytes = reader.stats()["file_bytes"]
    reader.close()
    # Twice what is there: maintain() evicts nothing, and has room for all that it moves. Segments
    # are a sixteenth of the budget, so that nearly all of them are full and may be moved.
    return _engine.Store(directory, budget_bytes=max(2 * file_bytes, MIN_BUDGET))


def _why_read_only(directory: str, store: Store) -> str:
    error = store.stats()["last_error"]
    return str(error) if error else f"{directory}: another process writes this KV cache"


def _hex(id_: bytes) -> str:
    return id_.hex()[:SHOWN_ID_DIGITS]


# ------------------------------------------------------------------ ls


def _leaves(store: Store, records: list[Record]) -> set[bytes]:
    """Anchors with no deeper one whose tokens begin with theirs."""
    blocks: dict[bytes, list[Record]] = defaultdict(list)  # that follow a block or a root
    anchors: dict[bytes, list[Record]] = defaultdict(list)
    for r in records:
        (anchors if r["kind"] == "anchor" else blocks)[r["parent"]].append(r)
    has_anchor: dict[bytes, bool] = {}  # at a block or below
    for r in reversed(records):
        if r["kind"] == "block":
            below = any(has_anchor[b["id"]] for b in blocks[r["id"]])
            has_anchor[r["id"]] = below or bool(anchors[r["id"]])

    def goes_on(record: Record, tail: list[int]) -> bool:
        tokens = store.tokens((record["kind"], record["id"])) if tail else []
        return tokens is not None and tokens[: len(tail)] == tail

    leaves = set()
    for parent, siblings in anchors.items():
        for r in siblings:
            tail = store.tokens(("anchor", r["id"])) or []
            deeper = [a for a in siblings if a["pos"] > r["pos"]]
            deeper += [b for b in blocks[parent] if has_anchor[b["id"]]]
            if not any(goes_on(d, tail) for d in deeper):
                leaves.add(r["id"])
    return leaves


def _listing(store: Store) -> list[dict[str, Any]]:
    records = store.records()
    leaves = _leaves(store, records)
    roots = []
    for root in store.roots():
        own = [r for r in records if r["root"] == root["id"]]
        anchors = sorted((r for r in own if r["kind"] == "anchor"), key=lambda r: -r["pos"])
        roots.append(
            {
                "name": root["name"],
                "fingerprint": root["fingerprint"],
                "numerics": root["numerics"],
                "n_blocks": len(own) - len(anchors),
                "n_anchors": len(anchors),
                "bytes": sum(r["bytes"] for r in own),
                "anchors": [
                    {
                        "id": r["id"].hex(),
                        "tokens": r["pos"],
                        "bytes": r["bytes"],
                        "hits": r["hits"],
                        "leaf": r["id"] in leaves,
                    }
                    for r in anchors
                ],
            }
        )
    return roots


def ls(args: argparse.Namespace) -> None:
    """``grebe cache ls``: models, and the deepest states of each; all anchors as JSON."""
    store = _reader(args.directory)
    roots = _listing(store)
    store.close()
    if args.json:
        print(json.dumps({"path": str(Path(args.directory)), "roots": roots}, ensure_ascii=False))
        return
    parts = []
    for root in roots:
        title = f"{printable(root['name'] or '(no name)')}, {printable(root['fingerprint'][:16])}"
        lines = [
            f"{title}, {printable(root['numerics'])}: {root['n_blocks']} blocks, "
            f"{root['n_anchors']} anchors, {size(root['bytes'])}"
        ]
        rows = [
            (a["id"][:SHOWN_ID_DIGITS], a["tokens"], size(a["bytes"]))
            for a in root["anchors"]
            if a["leaf"]
        ]
        if rows:
            lines.append(columns([("anchor", "tokens", "bytes"), *rows], right="lrr"))
        parts.append("\n".join(lines))
    print("\n\n".join(parts) if parts else "nothing is stored")


# ------------------------------------------------------------------ stats


def stats(args: argparse.Namespace) -> None:
    """``grebe cache stats``: what is there, in two columns or as JSON."""
    store = _reader(args.directory)
    numbers = store.stats()
    store.close()
    if args.json:
        print(json.dumps(numbers, ensure_ascii=False))
        return
    rows = []
    for name, value in numbers.items():
        label = name.removeprefix("n_").replace("_", " ")
        if isinstance(value, bool):
            rows.append((label, "yes" if value else "no"))
        elif isinstance(value, str):
            rows.append((label, value or "-"))
        elif "bytes" in name or name in ("payload_written", "written_today"):
            rows.append((label, size(value)))
        else:
            rows.append((label, str(value)))
    print(columns(rows, indent=""))


# ------------------------------------------------------------------ verify


def verify(args: argparse.Namespace) -> None:
    """``grebe cache verify``: an error, after a list, when something was not as written."""
    store = _writer(args.directory)
    try:
        before = store.stats()
        n_records = before["n_blocks"] + before["n_anchors"]
        with ProgressBar("verify", unit="B") as bar:
            damaged = store.verify(bar)
        s = store.stats()
        n_dropped = n_records - s["n_blocks"] - s["n_anchors"]
        if before["dropped_at_open"]:
            print(f"dropped: {printable(before['dropped_at_open'])}")
        if damaged:
            rows = [(r["kind"], _hex(r["id"]), r["pos"], size(r["bytes"])) for r in damaged]
            print(columns([("damaged", "id", "tokens", "bytes"), *rows], right="llrr", indent=""))
        if s["read_only"]:
            done = f"nothing is dropped: {_why_read_only(args.directory, store)}"
        else:
            done = f"{n_dropped} are dropped, with what follows them"
        if damaged:
            raise GrebeError(f"{len(damaged)} of {n_records} records are damaged; {done}")
        if before["dropped_at_open"]:
            raise GrebeError("the directory was damaged; the other records are as written")
        print(f"all {n_records} records are as written")
    finally:
        store.close()


# ------------------------------------------------------------------ rm


def _with_ids(records: list[Record], prefixes: list[str]) -> list[Record]:
    found = []
    for prefix in prefixes:
        p = prefix.lower()
        if len(p) < MIN_ID_DIGITS or set(p) - set("0123456789abcdef"):
            raise InvalidArgumentError(
                f"{prefix!a} is no id; at least {MIN_ID_DIGITS} hex digits are expected"
            )
        matches = [r for r in records if r["id"].hex().startswith(p)]
        if not matches:
            raise InvalidArgumentError(f"no record has an id that begins with {p}")
        if len(matches) > 1:
            raise InvalidArgumentError(
                f"{len(matches)} records have an id that begins with {p}; give more digits"
            )
        found += matches
    return found


def _highest(records: list[Record], record: Record) -> Record:
    """The record, or the first of the blocks before it that only lead to it.

    They hold the same text, and no session could go on from them.
    """
    blocks = {r["id"]: r for r in records if r["kind"] == "block"}
    n_anchors: dict[bytes, int] = defaultdict(int)  # at a block or below
    for r in reversed(records):
        n_anchors[r["parent"]] += 1 if r["kind"] == "anchor" else n_anchors[r["id"]]
    n = 1 if record["kind"] == "anchor" else n_anchors[record["id"]]
    while (parent := blocks.get(record["parent"])) and n_anchors[parent["id"]] == n:
        record = parent
    return record


def _drop(store: Store, args: argparse.Namespace) -> None:
    if args.ids:
        for record in _with_ids(store.records(), args.ids):
            records = store.records()
            if record["id"] in {r["id"] for r in records}:  # else gone with another
                top = _highest(records, record)
                store.remove((top["kind"], top["id"]))
        return
    roots = store.roots()
    if args.model is not None:
        prefix = args.model.lower()
        roots = [r for r in roots if prefix and r["fingerprint"].startswith(prefix)]
        if not roots:
            raise InvalidArgumentError(f"no model has a fingerprint that begins with {prefix!a}")
    for root in roots:
        store.remove_root(root["id"])


def rm(args: argparse.Namespace) -> None:
    """``grebe cache rm``: drops records, then gives the room back to the disk."""
    if bool(args.ids) + (args.model is not None) + args.all != 1:
        raise InvalidArgumentError("what is to go? Give either ids, or --model PREFIX, or --all")
    store = _writer(args.directory)
    try:
        before = store.stats()
        if before["read_only"]:
            raise StorageError(_why_read_only(args.directory, store), os.fspath(args.directory))
        _drop(store, args)
        after = store.stats()
    finally:
        store.close()
    file_bytes = _shrink(args.directory)
    n = before["n_blocks"] + before["n_anchors"] - after["n_blocks"] - after["n_anchors"]
    freed = max(before["file_bytes"] - file_bytes, 0)
    print(
        f"removed {n} records of {size(before['live_bytes'] - after['live_bytes'])}; "
        f"files are {size(freed)} smaller"
    )


def _shrink(directory: str) -> int:
    """Removes and rewrites what is mostly dead. Returns the bytes of all files.

    Opened anew, with a budget that fits what is left.
    """
    store = _writer(directory)
    try:
        for _ in range(4 * store.stats()["n_segments"] + 16):  # far more than it should need
            if not store.maintain():
                break
        return int(store.stats()["file_bytes"])
    finally:
        store.close()
