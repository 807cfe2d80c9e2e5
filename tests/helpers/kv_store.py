"""Records for tests of the KV store, whose content follows from their names; and what must hold of a store."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grebe import _engine
from grebe.errors import StorageError

Key = tuple[str, bytes]
PAGE_SUM_BYTES = 4

# Segments have a sixteenth of the budget, at least 16 KiB: small ones, so that little data fills many.
SMALL_BUDGET = 256 << 10


def root_id(name: str = "root") -> bytes:
    return _engine.record_id("block", hashlib.sha256(name.encode()).digest(), [])


ROOT = root_id()


def pages_of(kind: str, record_id: bytes, n_bytes: int) -> list[bytes]:
    """A few pages of unequal sizes, pseudo-random from the name."""
    data = hashlib.shake_128(kind.encode() + record_id).digest(n_bytes)
    third = max(n_bytes // 3, 1)
    return [p for p in (data[:third], data[third : 2 * third], data[2 * third :]) if p]


def record(
    kind: str, parent: bytes, tokens: list[int], pos: int, n_bytes: int = 1500, root: bytes = ROOT
) -> dict[str, Any]:
    record_id = _engine.record_id(kind, parent, tokens)
    return {
        "kind": kind,
        "id": record_id,
        "parent": parent,
        "root": root,
        "pos": pos,
        "tokens": tokens,
        "pages": pages_of(kind, record_id, n_bytes),
    }


def key_of(r: dict[str, Any]) -> Key:
    return r["kind"], r["id"]


def chain(
    name: int,
    n: int,
    *,
    parent: bytes = ROOT,
    pos: int = 0,
    n_bytes: int = 1500,
    anchor: bool = True,
) -> list[dict[str, Any]]:
    """n blocks one after another, and an anchor after the last."""
    out = []
    for i in range(n):
        pos += 4
        out.append(record("block", parent, [name, i, 7, pos], pos, n_bytes))
        parent = out[-1]["id"]
    if anchor:
        out.append(record("anchor", parent, [name], pos + 1, n_bytes))
    return out


def add_root(store: Any, root: bytes = ROOT, name: str = "a model") -> None:
    store.add_root(root, hashlib.sha256(root).hexdigest(), name, "cpu fast official 1")


def pages_read(payload: bytes) -> bytes:
    """The pages of a payload as record() makes them, without their checksums."""
    n = len(payload) - 3 * PAGE_SUM_BYTES
    third = max(n // 3, 1)
    out, at = b"", 0
    for size in (third, third, n - 2 * third):
        out += payload[at : at + size]
        at += size + PAGE_SUM_BYTES
    return out


def is_right(store: Any, key: Key) -> bool:
    """Whether the record's bytes are those that its name says; None counts as wrong."""
    payload = store.read(key)
    if payload is None:
        return False
    pages = pages_read(payload)
    return pages == b"".join(pages_of(*key, len(pages)))


def maintain(store: Any, limit: int = 1000) -> int:
    """Until there is nothing more to do."""
    for n in range(limit):
        if not store.maintain():
            return n
    raise AssertionError("maintain() finds no end")


def files_of(directory: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in directory.iterdir()}


def check(directory: Path, expected: Iterable[Key], *, may_miss: int = 0) -> set[Key]:
    """Opens the store as a new process would: what is expected is there, all that is there is right.

    Then it must take new records, and keep all of it over another opening. Returns the keys found.
    """
    expected = set(expected)
    for attempt in range(2):
        store = _engine.Store(directory, budget_bytes=SMALL_BUDGET)
        found = {key_of(r) for r in store.records()}
        missing = expected - found
        assert len(missing) <= may_miss, (len(missing), store.stats())
        for key in found:
            assert is_right(store, key), key
        assert store.verify() == []
        stats = store.stats()
        assert not stats["read_only"]
        if attempt == 0:
            add_root(store)
            fresh = chain(987654, 3)
            assert set(store.commit(fresh)) == {"committed"}
            expected = found | {key_of(r) for r in fresh}
            maintain(store)
            may_miss = store.stats()["records_evicted"]
        names = set(files_of(directory)) - {"lock", "manifest.kv"}
        assert len(names) == store.stats()["n_segments"], names
        store.close()
    return found


class Workload:
    """Commits, uses, removals, compaction and openings, in a fixed order.

    `kept` are the keys that a commit has reported as committed and nobody has removed since; `journal`
    is told of every change of it, before a process may be killed.
    """

    def __init__(self, directory: Path, storage: Any = None, journal: Any = None) -> None:
        self.directory = directory
        self.storage = storage
        self.journal = journal
        self.kept: set[Key] = set()
        self.n_evicted = 0
        self.store: Any = None

    def _note(self, sign: str, keys: Iterable[Key]) -> None:
        for kind, record_id in keys:
            if sign == "+":
                self.kept.add((kind, record_id))
            else:
                self.kept.discard((kind, record_id))
            if self.journal is not None:
                self.journal(f"{sign}{kind} {record_id.hex()}\n")

    def open(self) -> None:
        for attempt in range(3):
            try:
                self.store = _engine.Store(
                    self.directory, budget_bytes=SMALL_BUDGET, storage=self.storage
                )
                break
            except StorageError as e:
                if attempt == 2 or e.errno not in (errno.EIO, errno.ENOSPC):
                    raise
        add_root(self.store)

    def commit(self, records: list[dict[str, Any]]) -> None:
        results = self.store.commit(records)
        done = [
            key_of(r) for r, result in zip(records, results, strict=True) if result == "committed"
        ]
        self._note("+", done)

    def remove(self, key: Key) -> None:
        """What follows the key goes with it."""
        infos = {key_of(r): r for r in self.store.records()}
        gone, ids = {key}, {key[1]}
        for k, r in infos.items():  # parents first
            if r["parent"] in ids:
                gone.add(k)
                ids |= {k[1]} if k[0] == "block" else set()
        self._note("-", gone)
        self.store.remove(key)

    def close(self) -> None:
        if self.store is not None:
            self.n_evicted += self.store.stats()["records_evicted"]
            self.store.close()
            self.store = None

    def run(self) -> None:
        self.open()
        first = chain(1, 4)
        self.commit(first[:2])
        self.commit(first[2:])
        self.store.touch([key_of(first[-1])])
        second = chain(2, 6)
        self.commit(second)
        third = chain(3, 3, parent=first[1]["id"], pos=8)
        self.commit(third)  # the next segment
        self.remove(key_of(second[0]))
        self.commit([*chain(4, 2), *chain(2, 1)])  # some of it comes again
        maintain(self.store)  # compacts the first segment
        self.close()
        self.open()
        self.store.touch([key_of(first[-1]), key_of(third[-1])])
        self.commit(chain(5, 5, n_bytes=3000))
        self.remove(key_of(third[0]))
        self.remove(key_of(chain(5, 1, n_bytes=3000)[0]))
        for i in range(5):
            passing = chain(40 + i, 7, n_bytes=60)
            self.commit(passing)
            self.remove(key_of(passing[0]))
        maintain(self.store)  # writes a new manifest
        self.store.touch([key_of(first[-1])])
        self.commit(chain(6, 2))
        self.close()
