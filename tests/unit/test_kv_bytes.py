"""What the KV cache writes for sessions of Flash's KV shapes; benchmarks/bench_kv_store.py has long ones."""

from __future__ import annotations

from pathlib import Path

import grebe
import numpy as np
import pytest
from grebe import _engine

from benchmarks.kv_models import BLOCK_TOKENS, KV_FLASH, kv_flash
from tests.helpers.flash import FLASH

# Rows of a token: ratio 4 in 21 layers and ratio 128 in 20 of 584 bytes, index rows of 68.
ROW_BYTES = 21 * (584 + 68) / 4 + 20 * 584 / 128
# Windows of 128 rows in 43 layers, and f32 triples of 21 compressors and indexers.
ANCHOR_BYTES = 43 * 128 * 584 + 21 * 3 * 4 * (512 + 128)
PREFIX, OWN = 2 * BLOCK_TOKENS, BLOCK_TOKENS + 100


class Written:
    """Records in a directory, and what was given to the disk for them."""

    def __init__(self, cache: grebe.Cache) -> None:
        assert cache.flush(60)
        self.stats = cache.stats()
        store = _engine.Store(cache.path, read_only=True)
        records = store.records()
        self.blocks = [r["bytes"] for r in records if r["kind"] == "block"]
        self.anchors = [(r["pos"], r["bytes"]) for r in records if r["kind"] == "anchor"]
        store.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Written, Written]:
    """After a first session, and after a second one that begins in the same way."""
    folder: Path = tmp_path_factory.mktemp("kv_bytes")
    model = grebe.Model.load(kv_flash(folder / "kv.gguf", top_k=16), backend="cpu", n_threads=2)
    ids = np.random.default_rng(1).integers(3, KV_FLASH.vocab, PREFIX + 2 * OWN).tolist()
    out = []
    with model.open_cache(folder / "kv") as cache:
        for own in (ids[PREFIX : PREFIX + OWN], ids[PREFIX + OWN :]):
            with cache.session() as s:
                s.prefill(ids[:PREFIX] + own, marks=[PREFIX, PREFIX + OWN])
            out.append(Written(cache))
    return out[0], out[1]


def test_the_state_has_the_shapes_of_flash():
    sizes = ("ratios", "head_dim", "rope_dim", "window", "index_head_dim", "top_k")
    assert [getattr(KV_FLASH, s) for s in sizes] == [getattr(FLASH, s) for s in sizes]


def test_a_token_costs_its_rows_and_little_else(written):
    first, _ = written
    assert int(ROW_BYTES) == 3514
    assert len(first.blocks) == (PREFIX + OWN) // BLOCK_TOKENS
    per_token = sum(first.blocks) / len(first.blocks) / BLOCK_TOKENS
    assert ROW_BYTES <= per_token < 1.01 * ROW_BYTES


def test_anchors_keep_to_their_ration(written):
    for state, n_sessions in zip(written, (1, 2), strict=True):
        for pos, n in state.anchors:
            tail = pos % BLOCK_TOKENS * ROW_BYTES
            assert 1 <= n / (ANCHOR_BYTES + tail) < 1.01
        most = max(n for _, n in state.anchors)
        total = sum(n for _, n in state.anchors)
        assert total <= 0.42 * sum(state.blocks) + 4 * n_sessions * most


def test_a_shared_prefix_is_written_once(written):
    first, second = written
    assert len(second.blocks) - len(first.blocks) == OWN // BLOCK_TOKENS
    payload = sum(second.blocks) + sum(n for _, n in second.anchors)
    assert second.stats.payload_written == payload


def test_little_is_written_beside_the_records(written):
    for state in written:
        assert 1 < state.stats.write_amplification < 1.01
        assert state.stats.disk_bytes < 1.01 * state.stats.payload_written
