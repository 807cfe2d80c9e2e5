"""The KV cache as a user of the package meets it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grebe
import numpy as np
import pytest
from grebe import _engine

from tests.helpers import models


@pytest.fixture(scope="module")
def model() -> grebe.Model:
    return models.load("embedded")


@pytest.fixture
def cache(model: grebe.Model, tmp_path: Path) -> Iterator[grebe.Cache]:
    with model.open_cache(tmp_path / "kv") as opened:
        yield opened


def tokens(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(300, 8000, n).tolist()


def fresh(model: grebe.Model, ids: list[int]) -> np.ndarray:
    with model.session() as s:
        s.prefill(ids)
        return s.logits


def test_a_second_session_computes_what_lies_after_the_last_anchor(model, cache):
    ids = tokens(1500)
    with cache.session() as s:
        assert s.prefill(ids) == 1500
    with cache.session() as s:
        assert s.prefill(ids) == 1500 - 1408
        assert np.array_equal(s.logits, fresh(model, ids))
    stats = cache.stats()
    assert (stats.lookups, stats.hits, stats.tokens_found) == (2, 1, 1408)
    assert stats.blocks_from_ram == 2


def test_marks_are_where_another_prompt_may_branch_off(model, cache):
    system, a, b = tokens(1000), tokens(700, 1), tokens(700, 2)
    with cache.session() as s:
        s.prefill(system + a, marks=[1000])
    with cache.session() as s:
        assert s.prefill(system + b) == 700 + 1000 - 896
        assert np.array_equal(s.logits, fresh(model, system + b))


def test_without_a_mark_blocks_are_known_but_there_is_no_place_to_start(cache):
    with cache.session() as s:
        s.prefill(tokens(1000) + tokens(700, 1))
    with cache.session() as s:
        assert s.prefill(tokens(1000) + tokens(700, 2)) == 1700
    assert cache.stats().misses_no_anchor == 1
    assert cache.stats().blocks_shared == 1  # its rows are stored once all the same


def test_what_is_on_disk_is_found_by_the_next_process(model, tmp_path):
    ids = tokens(2500)
    code = (
        "import sys, grebe, json\n"
        "m = grebe.Model.load()\n"
        "c = m.open_cache(sys.argv[1])\n"
        "s = c.session()\n"
        "print(s.prefill(json.load(open(sys.argv[2]))))\n"  # ends without closing anything
    )
    import json

    (tmp_path / "ids.json").write_text(json.dumps(ids))
    command = [sys.executable, "-c", code, str(tmp_path / "kv"), str(tmp_path / "ids.json")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "2500\n"
    with model.open_cache(tmp_path / "kv") as cache, cache.session() as s:
        assert s.prefill(ids) == 2500 - 2432
        assert np.array_equal(s.logits, fresh(model, ids))
        assert cache.stats().blocks_from_disk == 4


def test_rows_read_back_from_disk_give_the_same_numbers(model, tmp_path):
    """With no RAM for rows every token fetches what its index chose; prompts read runs of them."""
    ids = tokens(3000)
    with model.open_cache(tmp_path / "kv", ram_bytes=0) as cache:
        with cache.session() as s:
            s.prefill(ids)
        cache.flush()
        cache.trim()
        with cache.session() as s, model.session() as twin:
            s.prefill(ids)
            twin.prefill(ids)
            for token in tokens(20, 3):
                s.decode(token)
                twin.decode(token)
                assert np.array_equal(s.logits, twin.logits)
            more = tokens(700, 4)
            assert np.array_equal(s.evaluate(more), twin.evaluate(more))
        stats = cache.stats()
        assert stats.page_misses > 0
        assert stats.streamed_bytes > 0


def test_pages_are_kept_within_the_budget(model, tmp_path):
    ids = tokens(3000)
    with model.open_cache(tmp_path / "kv", ram_bytes=200_000) as cache:
        with cache.session() as s:
            s.prefill(ids)
        cache.flush()
        cache.trim()
        with cache.session() as s:
            s.prefill(ids)
            for token in tokens(50, 3):
                s.decode(token)
            stats = cache.stats()
            assert stats.page_hits > 0
            assert stats.ram_bytes <= 200_000
            twin = model.session()
            twin.prefill(s.tokens)
            assert np.array_equal(s.logits, twin.logits)


def test_live_sessions_give_up_their_rows_when_ram_is_short(model, tmp_path):
    ids = tokens(3000)
    with model.open_cache(tmp_path / "kv", ram_bytes=0) as cache, cache.session() as s:
        s.prefill(ids)
        cache.flush()
        s.decode(5)
        with model.session() as twin:
            twin.prefill([*ids, 5])
            assert s.nbytes < twin.nbytes - 5 * 12_000  # five full blocks
        assert np.array_equal(s.logits, fresh(model, [*ids, 5]))


def test_a_generation_ends_with_a_turn(model, cache):
    with cache.session() as s:
        list(s.generate(tokens(300), max_tokens=150))
        text = s.tokens
    with cache.session() as s:
        assert s.prefill([*text, 5, 6]) <= 127 + 2


def test_a_mark_that_ends_a_turn_is_written(model, tmp_path):
    """The point is near the last one written: alone it would stay in memory."""
    ids = tokens(768)
    with model.open_cache(tmp_path / "kv") as cache, cache.session() as s:
        s.prefill(ids[:640])
        s.prefill(ids, marks=[768])
        s.end_turn()
    with model.open_cache(tmp_path / "kv") as cache, cache.session() as s:
        assert s.prefill([*ids, 5, 6]) == 2
        assert np.array_equal(s.logits, fresh(model, [*ids, 5, 6]))


def test_forks_share_and_part(model, cache):
    ids = tokens(1000)
    with cache.session() as s:
        s.prefill(ids)
        copy = s.fork()
        assert copy.cache is cache
        for one, seed in ((s, 1), (copy, 2)):
            one.prefill(ids + tokens(600, seed))
            assert np.array_equal(one.logits, fresh(model, ids + tokens(600, seed)))
    assert cache.stats().blocks_sealed == 1 + 2 + 2


def test_sessions_outlive_the_cache(model, tmp_path):
    ids = tokens(2000)
    cache = model.open_cache(tmp_path / "kv", ram_bytes=0)
    s = cache.session()
    s.prefill(ids)
    assert cache.close()
    assert cache.close()
    s.prefill(ids + tokens(600, 1))
    assert np.array_equal(s.logits, fresh(model, ids + tokens(600, 1)))
    with pytest.raises(grebe.InvalidArgumentError, match="the cache is closed"):
        cache.stats()
    assert "closed" in repr(cache)


def test_a_vanished_directory_costs_time_only(model, tmp_path):
    """Rows that were on disk only are computed again; the next turn goes on without a disk."""
    import shutil

    ids = tokens(2500)
    with model.open_cache(tmp_path / "kv", ram_bytes=0) as cache, cache.session() as s:
        s.prefill(ids)
        cache.flush()
        cache.trim()
        for file in (tmp_path / "kv").glob("segment-*"):
            os.truncate(file, 0)
        shutil.rmtree(tmp_path / "kv")
        s.prefill(ids + tokens(600, 1))
        assert np.array_equal(s.logits, fresh(model, ids + tokens(600, 1)))
        assert cache.stats().rows_lost > 0


@pytest.mark.parametrize(("op", "errno"), [("write", 28), ("sync", 5), ("open", 5), ("any", 5)])
def test_a_disk_that_refuses_everything_is_a_cache_that_keeps_nothing(model, tmp_path, op, errno):
    storage = _engine.FaultyStorage(None, 1)
    engine = model._live.open_cache(
        tmp_path / "kv", budget_bytes=1 << 26, ram_bytes=1 << 26, daily_write_bytes=0,
        read_only=False, storage=storage,
    )  # fmt: skip
    storage.add(op, "fail", count=None, errno=errno)
    cache = grebe.Cache(model, engine, tmp_path / "kv")
    ids = tokens(1500)
    with cache.session() as s:
        assert s.prefill(ids) == 1500
        assert np.array_equal(s.logits, fresh(model, ids))
    assert not cache.flush(1.0)
    stats = cache.stats()
    assert stats.last_error
    assert stats.blocks_on_disk == 0
    assert stats.unsaved_bytes > 0
    with cache.session() as s:
        assert s.prefill(ids) < 200  # RAM is enough
    storage.clear()
    assert cache.flush(20.0)  # and the disk has it when it works again
    assert cache.stats().blocks_on_disk == 2
    cache.close()


def test_two_caches_of_one_directory(model, tmp_path):
    """The second one reads what the first has committed."""
    ids = tokens(2500)
    with model.open_cache(tmp_path / "kv") as writer, model.open_cache(tmp_path / "kv") as reader:
        assert reader.stats().read_only
        assert not writer.stats().read_only
        with writer.session() as s:
            s.prefill(ids)
        writer.flush()
        with reader.session() as s:
            assert s.prefill(ids) == 2500 - 2432
            assert np.array_equal(s.logits, fresh(model, ids))


def test_a_directory_serves_models_that_know_nothing_of_each_other(model, tmp_path):
    other = models.load("tiny_gguf")
    ids = [t % 200 + 3 for t in tokens(1500)]
    for m in (model, other, model, other):
        with m.open_cache(tmp_path / "kv") as cache, cache.session() as s:
            computed = s.prefill(ids)
            assert np.array_equal(s.logits, fresh(m, ids))
    assert computed == 1500 - 1408
    exact = models.load("embedded", kernels="exact")
    with exact.open_cache(tmp_path / "kv") as cache, cache.session() as s:
        assert s.prefill(ids) == 1500


def test_threads(model, cache):
    """Sessions of several threads, one cache: each gets what it would get alone."""
    want = {seed: fresh(model, tokens(1100) + tokens(500, seed)) for seed in range(4)}
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(5):
            with cache.session() as s:
                s.prefill(tokens(1100) + tokens(500, seed), marks=[1100])
                if not np.array_equal(s.logits, want[seed]):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in want]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_ram_is_given_back_with_the_last_session(model, tmp_path):
    with model.open_cache(tmp_path / "kv", ram_bytes=1 << 16) as cache:
        with cache.session() as s:
            s.prefill(tokens(3000))
            cache.flush()
        gc.collect()
        assert cache.stats().ram_bytes <= 1 << 16


def test_a_forked_child_leaves_the_store_alone(model, tmp_path):
    code = (
        "import os, sys, grebe\n"
        "m = grebe.Model.load()\n"
        "c = m.open_cache(sys.argv[1])\n"
        "s = c.session(); s.prefill(list(range(300, 1500)))\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    del s, c, m\n"
        "    sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "s.prefill(list(range(300, 2500))); s.close()\n"
        "assert c.flush()\n"
        "print(c.stats().blocks_on_disk)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "kv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "4\n", done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_bytes": 5}, "budget_bytes is 5"),
        ({"ram_bytes": -1}, "ram_bytes is -1"),
        ({"daily_write_bytes": 0}, "daily_write_bytes is 0"),
        ({"ram_bytes": "much"}, "ram_bytes is 'much'"),
    ],
)
def test_options_out_of_range_are_named(model, tmp_path, options, message):
    with pytest.raises(grebe.InvalidArgumentError, match=message):
        model.open_cache(tmp_path / "kv", **options)


def test_a_directory_that_cannot_be_one(model, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(grebe.StorageError):
        model.open_cache(tmp_path / "file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    with pytest.raises(grebe.FormatError, match=r"cat\.jpg"):
        model.open_cache(tmp_path / "photos")
    assert [f.name for f in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_a_cache_of_another_model_is_refused(cache):
    with pytest.raises(grebe.InvalidArgumentError, match="opened by another model"):
        models.load("tiny_gguf").session(cache=cache)
    with pytest.raises(grebe.InvalidArgumentError, match=r"a grebe\.Cache is expected"):
        cache.model.session(cache="kv")  # type: ignore[arg-type]


def test_sessions_resume_and_then_take_their_prompts_in_common_steps(model, cache):
    system, a, b = tokens(1000), tokens(700, 1), tokens(300, 2)
    with cache.session() as s:
        s.prefill(system, marks=[1000])
    prompts = {cache.session(): system + a, cache.session(): system + b}
    for s, prompt in prompts.items():
        assert s.resume(prompt, marks=[1600 if prompt[1000:] == a else 1280]) == 896
        with pytest.raises(grebe.InvalidArgumentError, match="no logits"):
            _ = s.logits
    while rows := [(s, p[s.pos : s.pos + 100]) for s, p in prompts.items() if s.pos < len(p)]:
        model.step(rows)
    for s, prompt in prompts.items():
        assert s.tokens == prompt
        assert np.array_equal(s.logits, fresh(model, prompt))
        assert s.resume(prompt) <= len(prompt) - 1
        s.close()
    with cache.session() as s:  # the marks of a resume count in the steps after it
        assert s.resume([*system, *a[:650], 5]) == 1536


def test_resume_checks_its_tokens_and_computes_nothing(model):
    with model.session(n_ctx=600) as s:
        with pytest.raises(grebe.InvalidArgumentError, match="no tokens"):
            s.resume([])
        with pytest.raises(grebe.InvalidArgumentError, match="mark 9"):
            s.resume([1, 2, 3], marks=[9])
        with pytest.raises(grebe.ContextOverflowError):
            s.resume(tokens(601))
        assert s.resume(tokens(600)) == 0 and s.pos == 0
        s.prefill(tokens(300))
        assert s.resume(tokens(300)[:200]) == 128


def test_marks_are_checked(cache):
    with cache.session() as s:
        with pytest.raises(grebe.InvalidArgumentError, match=r"mark 7; expected 0\.\.3"):
            s.prefill([1, 2, 3], marks=[7])
        assert s.pos == 0


def test_files_are_for_the_owner(cache, tmp_path):
    with cache.session() as s:
        s.prefill(tokens(600))
    cache.flush()
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700
    for file in (tmp_path / "kv").iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file


def test_the_command_line_reads_a_prompt_once(tmp_path):
    """``grebe run --cache DIR``: the same text, and the second time from the last anchor on."""
    command = [sys.executable, "-m", "grebe", "run", "--greedy", "--max-tokens", "5", "--json",
               "--cache", str(tmp_path / "kv"), "A small bird dived deep. " * 60]  # fmt: skip
    import json

    totals = []
    for _ in range(2):
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        totals.append(json.loads(lines.splitlines()[-1]))
    assert totals[0]["text"] == totals[1]["text"]
    assert totals[0]["usage"]["cached_tokens"] == 0
    assert totals[1]["usage"]["prompt_tokens"] - totals[1]["usage"]["cached_tokens"] <= 128


def test_a_session_that_went_back_while_its_rows_were_on_disk(tmp_path):
    """What the last token chose may lie beyond where another prompt ends."""
    model = models.load("tiny_gguf")  # two layers of ratio 4: one prefetches for the other
    long, short = [t % 400 + 3 for t in tokens(3900)], [t % 400 + 3 for t in tokens(1100, 1)]
    with model.open_cache(tmp_path / "kv", ram_bytes=1 << 20) as cache, cache.session() as s:
        s.prefill(long)
        cache.flush()
        cache.trim()
        for token in short[:5]:
            s.decode(token)
        with cache.session() as other:
            other.prefill(short)
        cache.flush()
        cache.trim()
        s.prefill([*short, 7])
        cache.flush()
        cache.trim()
        s.decode(5)
        assert np.array_equal(s.logits, fresh(model, [*short, 7, 5]))


def test_forks_of_a_session_whose_rows_the_disk_lost(tmp_path):
    """One computes them again, the others take them from it; going back into such a block is safe."""
    model = models.load("tiny_gguf")
    ids = [t % 400 + 3 for t in tokens(2600)]
    with model.open_cache(tmp_path / "kv", ram_bytes=0) as cache, cache.session() as s:
        s.prefill(ids)
        forks = [s.fork() for _ in range(3)]
        cache.flush()
        cache.trim()
        for file in (tmp_path / "kv").glob("segment-*"):
            data = bytearray(file.read_bytes())
            for at in range(2000, len(data), 1500):
                data[at] ^= 1
            with file.open("r+b") as f:  # the same file: it is open
                f.write(data)
        for token in tokens(8, 5):
            s.decode(token % 400 + 3)
        assert np.array_equal(s.logits, fresh(model, s.tokens))
        assert cache.stats().rows_lost > 0
        sealed = cache.stats().blocks_sealed
        for f in forks[:2]:
            f.decode(5)
            assert np.array_equal(f.logits, fresh(model, [*ids, 5]))
        assert cache.stats().blocks_sealed == sealed  # nothing was computed twice
        forks[2].rewind(2300)
        assert np.array_equal(forks[2].logits, fresh(model, ids[:2300]))


def test_what_a_full_disk_drove_out_is_written_again(model, tmp_path):
    storage = _engine.FaultyStorage(None, 1)
    engine = model._live.open_cache(
        tmp_path / "kv", budget_bytes=1 << 26, ram_bytes=1 << 26, daily_write_bytes=0,
        read_only=False, storage=storage,
    )  # fmt: skip
    cache = grebe.Cache(model, engine, tmp_path / "kv")
    ids = tokens(3500)
    with cache.session() as s:
        s.prefill(ids[:3000])
        assert cache.flush()
        storage.add("write", "fail", count=None, errno=28)
        s.prefill(ids)
        assert not cache.flush(1.0)
        storage.clear()
    assert cache.flush(20.0)
    cache.close()
    with model.open_cache(tmp_path / "kv") as again, again.session() as s:
        assert s.prefill(ids) <= 128
        assert np.array_equal(s.logits, fresh(model, ids))


def test_blocks_that_others_drove_from_the_disk(model, tmp_path):
    """A session whose rows were on disk only computes them again; one that has them keeps them."""
    engine = model._live.open_cache(
        tmp_path / "kv", budget_bytes=1 << 20, ram_bytes=0, daily_write_bytes=0, read_only=False
    )
    cache = grebe.Cache(model, engine, tmp_path / "kv")
    first = cache.session()
    first.prefill(tokens(2000))
    for seed in range(1, 6):
        cache.flush()
        with cache.session() as s:
            s.prefill(tokens(6000, seed))
    cache.flush()
    assert cache.stats().records_evicted > 0
    assert cache.stats().disk_bytes <= 1 << 20
    first.decode(5)
    assert np.array_equal(first.logits, fresh(model, first.tokens))
    assert cache.stats().rows_lost <= 1
    again = cache.stats().rows_lost
    cache.flush()
    first.decode(6)
    assert np.array_equal(first.logits, fresh(model, first.tokens))
    assert cache.stats().rows_lost == again
    cache.close()


def test_one_failed_read_costs_nothing(model, tmp_path):
    storage = _engine.FaultyStorage(None, 1)
    engine = model._live.open_cache(
        tmp_path / "kv", budget_bytes=1 << 26, ram_bytes=0, daily_write_bytes=0,
        read_only=False, storage=storage,
    )  # fmt: skip
    cache = grebe.Cache(model, engine, tmp_path / "kv")
    ids = tokens(2500)
    with cache.session() as s:
        s.prefill(ids)
    assert cache.flush()
    cache.trim()
    for action in ("fail", "flip_bit"):
        storage.add("read", action, count=1)
        with cache.session() as s:
            assert s.prefill(ids) <= 128
            assert np.array_equal(s.logits, fresh(model, ids))
        cache.trim()
    assert storage.n_fired == 2
    assert cache.stats().records_damaged == 0
    cache.close()


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "x"])
def test_times_are_checked(cache, value):
    with pytest.raises(grebe.InvalidArgumentError, match="timeout_s is"):
        cache.flush(value)
    with pytest.raises(grebe.InvalidArgumentError, match="timeout_s is"):
        cache.close(value)
    assert cache.close()


def test_other_arguments_are_checked(cache):
    with pytest.raises(grebe.InvalidArgumentError, match="ram_bytes is -1"):
        cache.trim(-1)
    with cache.session() as s, pytest.raises(grebe.InvalidArgumentError, match="marks is 5"):
        s.prefill([1, 2, 3], marks=5)  # type: ignore[arg-type]
