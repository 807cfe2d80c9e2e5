"""Whole models on the Metal backend: against the oracle, against the CPU backend, and through the Python API.

On Linux every kernel and every dispatch of these steps runs on the simulated device.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grebe
import numpy as np
import pytest

from tests.helpers import models, reference
from tests.helpers.flash import FLASH, flash_model
from tests.helpers.tiny_gguf import Shape, tiny_model
from tests.metal.conftest import ON_A_MAC, SEEDS, set_device
from tests.oracle.test_shapes import SHAPES, reference_model

PROMPT = "Once upon a time, there was a little girl named Lily."
Load = Callable[..., grebe.Model]


@pytest.fixture
def load(metal_device, control) -> Load:
    """Model.load on the device; by default a fixture or ``embedded``."""
    set_device(control, seed=1, race=False)

    def load(path: str | Path = "embedded", **options) -> grebe.Model:
        if path in models.FIXTURES:
            path = models.fixture_path(str(path))
        return grebe.Model.load(None if path == "embedded" else path, backend="metal", **options)

    return load


def relative_rms(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(((x - y) ** 2).mean() / (y**2).mean()))


def greedy(session: grebe.Session, n: int) -> list[int]:
    out = []
    for _ in range(n):
        out.append(int(session.logits.argmax()))
        session.decode(out[-1])
    return out


def story(model: grebe.Model, n: int) -> str:
    return model.complete(PROMPT, max_tokens=n, sampling=grebe.Sampling(temperature=0)).text


# ---- against the oracle: limits as on the CPU (tests/oracle/test_fixtures.py)


# All layer kinds, selection among more rows than are kept, and two rows of ratio 128.
N_TOKENS = 270


@pytest.mark.parametrize("name", models.FIXTURES)
def test_plain_mathematics(load: Load, name: str) -> None:
    model = load(name, kv_rounding="off", kernels="exact", prefill_chunk=200)
    logits = model.session().evaluate(models.tokens(name)[:N_TOKENS])
    expected = models.expected(name, "none")[:N_TOKENS]
    assert np.abs(logits - expected).max() <= 1e-3
    assert relative_rms(logits, expected) <= 1e-5


def test_official_rounding(load: Load) -> None:
    """98 % of all positions. One code that falls to the other side moves every later position that attends to its
    row, so a single fixture may have a few percent of them (measured: 3 % in tiny_gguf, up to 0.05; none elsewhere).
    """
    errors, same = [], []
    for name in models.FIXTURES:
        logits = load(name, kernels="exact").session().evaluate(models.tokens(name)[:N_TOKENS])
        expected = models.expected(name, "qat")[:N_TOKENS]
        errors.append(np.abs(logits - expected).max(1))
        same.append(logits.argmax(1) == expected.argmax(1))
        assert (errors[-1] <= 1e-2).mean() >= 0.95
    assert (np.concatenate(errors) <= 1e-2).mean() >= 0.98
    assert np.concatenate(same).mean() >= 0.98


@pytest.mark.parametrize("name", ["tiny_a", "tiny_gguf"])
def test_decode_is_prefill(load: Load, name: str) -> None:
    """Token by token, from the middle on and across 128-token boundaries."""
    ids = models.tokens(name)[:262]
    s = load(name, kv_rounding="off", kernels="exact").session()
    s.prefill(ids[:250])
    logits = []
    for token in ids[250:]:
        s.decode(token)
        logits.append(s.logits)
    assert relative_rms(np.array(logits), models.expected(name, "none")[250:262]) <= 1e-5


@pytest.mark.parametrize("name", models.FIXTURES)
def test_fast_kernels(load: Load, name: str) -> None:
    """bf16 rotary channels and half-precision tiles in prefill: measured once, held with a quarter of room."""
    measured = {"tiny_a": 0.0616, "tiny_b": 0.0616, "tiny_fp4": 0.0616, "tiny_gguf": 0.0961}
    logits = load(name).session().evaluate(models.tokens(name)[:N_TOKENS])
    assert relative_rms(logits, models.expected(name, "qat")[:N_TOKENS]) <= 1.25 * measured[name]


@pytest.mark.parametrize("shape", SHAPES)
def test_odd_shapes(load: Load, shape: str, tmp_path: Path) -> None:
    """Every number of the architecture varied, prefill in chunks then decode, against the reference."""
    writer = tiny_model(SHAPES[shape])
    config, weights = reference_model(writer, SHAPES[shape])
    model = load(
        writer.write(tmp_path / "m.gguf"), kv_rounding="off", kernels="exact", prefill_chunk=90
    )
    ids = np.random.default_rng(2).integers(0, SHAPES[shape].vocab, 150).tolist()
    expected, _ = reference.forward(config, weights, ids, "none")
    s = model.session()
    logits = [*s.evaluate(ids[:140])]
    for token in ids[140:]:
        s.decode(token)
        logits.append(s.logits)
    assert np.abs(np.array(logits) - expected).max() <= 1e-3
    assert relative_rms(np.array(logits), expected) <= 1e-5


# ---- the embedded model through the Python API


def test_the_story_is_the_cpu_backends(load: Load) -> None:
    # Decode is f32 on Metal; kernels="fast" of the CPU multiplies int8 activations.
    metal = load(prefill_chunk=8)
    cpu = models.load("embedded", kernels="exact")
    assert (metal.options["backend"], cpu.options["backend"]) == ("metal", "cpu")
    assert story(metal, 60) == story(cpu, 60)


def test_fork_rewind_restore(load: Load) -> None:
    """State goes from one backend to the other and back, and the story goes on as if it had not."""
    metal, cpu = load(kernels="exact"), models.load("embedded", kernels="exact")
    assert cpu.options["backend"] == "cpu"
    ids = cpu.tokenizer.encode(PROMPT)
    s = cpu.session()
    s.prefill(ids)
    expected = greedy(s, 40)

    a = metal.session()
    a.prefill(ids)
    assert greedy(a, 10) == expected[:10]
    b = a.fork()
    assert greedy(b, 20) == expected[10:30]
    a.rewind(len(ids) + 5)
    assert greedy(a, 15) == expected[5:20]
    c = cpu.restore(b.snapshot())
    assert greedy(c, 5) == expected[30:35]
    d = metal.restore(c.snapshot())
    assert d.tokens == c.tokens
    assert greedy(d, 5) == expected[35:40]
    assert greedy(b, 10) == expected[30:40]


def test_steps_of_several_sessions(load: Load) -> None:
    """Rows of several sessions share a step, and are what they would be alone."""
    metal = load(kernels="exact", kv_rounding="off")
    prompts = [[5, 6, 7] * 11, [9] * 140, [3]]
    alone = []
    for prompt in prompts:
        s = metal.session()
        s.prefill(prompt)
        s.decode(11)
        alone.append(s.logits)
    sessions = [metal.session() for _ in prompts]
    metal.step([(s, p) for s, p in zip(sessions, prompts, strict=True)])
    metal.step([(s, [11]) for s in sessions])
    for s, expected in zip(sessions, alone, strict=True):
        assert relative_rms(s.logits, expected) <= 1e-5


def test_ahead_is_not_taken_for_another_step(load: Load) -> None:
    """A step recorded ahead serves its own session and position only."""
    model = load()
    ids = model.tokenizer.encode(PROMPT)

    def fresh(tokens: list[int]) -> np.ndarray:
        s = model.session()
        s.prefill(tokens)
        return s.logits

    a, b = model.session(), model.session()
    a.prefill(ids)
    b.prefill(ids[:7])
    a.decode(21)  # the next step of a is recorded
    b.decode(22)  # another session comes
    a.decode(23)
    fork = a.fork()
    a.decode(24)
    fork.decode(25)
    a.rewind(len(ids) + 1)
    a.decode(26)
    for s, tokens in ((a, [*ids, 21, 26]), (b, [*ids[:7], 22]), (fork, [*ids, 21, 23, 25])):
        assert s.tokens == tokens
        assert relative_rms(s.logits, fresh(tokens)) <= 2e-2


@pytest.mark.skipif(ON_A_MAC, reason="the device is too quick to be interrupted")
def test_cancel_ends_a_chunk_between_two_layers(load: Load) -> None:
    model = load()
    s = model.session()
    s.prefill([5] * 40)  # kernels are compiled
    generation = s.generate([6] * 300, max_tokens=1)
    threading.Timer(0.2, generation.cancel).start()
    assert list(generation) == []
    assert generation.finish_reason == "cancelled"
    assert s.pos == 0  # one chunk: it was given up
    s.prefill([5] * 40)


# ---- the checker, seeds and limits of the simulated device


def small_steps(model: grebe.Model, vocab: int) -> np.ndarray:
    """Prefill in chunks, decode past the points where rows are finished, two sessions in a step, a fork."""
    ids = np.random.default_rng(3).integers(0, vocab, 200).tolist()
    a, b = model.session(), model.session()
    a.prefill(ids[:150])
    b.prefill(ids[:3])
    for token in ids[150:160]:
        a.decode(token)
    model.step([(a, ids[160:163]), (b, ids[3:4])])
    c = a.fork()
    c.decode(ids[170])
    a.rewind(140)
    return np.array([a.logits, b.logits, c.logits])


@pytest.mark.skipif(ON_A_MAC, reason="of the simulated device")
@pytest.mark.parametrize("kernels", ["fast", "exact"])
def test_the_checker_finds_nothing_in_whole_steps(
    load: Load, fake, kernels: str, tmp_path: Path
) -> None:
    """Races within kernels, missing barriers between dispatches, bounds, uninitialised memory."""
    path = tiny_model(replace(Shape(), ratios=(0, 4, 128, 4))).write(tmp_path / "m.gguf")
    expected = small_steps(load(path, kernels=kernels, prefill_chunk=64), 264)
    fake["race"] = 1
    logits = small_steps(load(path, kernels=kernels, prefill_chunk=64), 264)
    assert fake["dispatches"] > 500
    assert np.array_equal(logits, expected)


@pytest.mark.skipif(ON_A_MAC, reason="of the simulated device")
def test_a_missing_barrier_is_found(load: Load, fake, tmp_path: Path) -> None:
    """The check can fail: without the recorder's barriers the checker reports."""
    path = tiny_model().write(tmp_path / "m.gguf")
    fake["race"] = 1
    fake["ignore_barriers"] = 1
    try:
        load(path).session().prefill([1, 2, 3])
    finally:
        fake["ignore_barriers"] = 0
    assert fake.reports()


@pytest.mark.parametrize("kernels", ["fast", "exact"])
def test_seeds_give_the_same_bits(load: Load, control, kernels: str, tmp_path: Path) -> None:
    """A kernel whose result depends on the order of lanes or threadgroups is wrong."""
    path = tiny_model().write(tmp_path / "m.gguf")
    results = []
    for seed in SEEDS or [1, 2]:
        set_device(control, seed=seed, race=False)
        results.append(small_steps(load(path, kernels=kernels, prefill_chunk=64), 264))
    for a, b in itertools.pairwise(results):
        assert np.array_equal(a, b)


@pytest.mark.skipif(ON_A_MAC, reason="of the simulated device")
def test_weights_in_several_views(load: Load, fake) -> None:
    """A file larger than the largest buffer is mapped in overlapping views."""
    expected = story(load(), 8)
    size = grebe.Model.load().path.stat().st_size
    fake["max_buffer_bytes"] = max(size // 3, 5 << 20)
    before = fake["buffers"]
    model = load()
    assert story(model, 8) == expected
    assert fake["buffers"] > before


@pytest.mark.skipif(ON_A_MAC, reason="of the simulated device")
def test_a_model_that_does_not_fit_is_refused_at_open(load: Load, fake) -> None:
    fake["working_set_bytes"] = 4 << 20
    with pytest.raises(
        grebe.OutOfMemoryError, match=r"the model file needs .* sysctl iogpu\.wired_limit_mb"
    ):
        load()


@pytest.mark.skipif(ON_A_MAC, reason="of the simulated device")
def test_a_machine_that_is_too_small_is_told_so(load: Load, fake, tmp_path: Path) -> None:
    """No setting helps a file of 81 GiB on less memory than that."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fake["working_set_bytes"] = 72 << 30
    with pytest.raises(grebe.OutOfMemoryError) as caught:
        load(flash_model().write(tmp_path / "flash.gguf"))
    assert ("is too small for it" in str(caught.value)) == (memory < 87 << 30)
    assert ("sysctl" in str(caught.value)) == (memory >= 87 << 30)


@pytest.mark.skipif(ON_A_MAC, reason="of the simulated device")
def test_a_tensor_larger_than_any_buffer_is_refused(load: Load, fake) -> None:
    fake["max_buffer_bytes"] = 1 << 20
    with pytest.raises(grebe.OutOfMemoryError, match=r"a tensor of .* does not fit one buffer"):
        load()


@pytest.mark.skipif(ON_A_MAC, reason="of the simulated device")
def test_a_kernel_that_the_device_cannot_run_is_named(load: Load, fake) -> None:
    fake["max_threads"] = 64
    with pytest.raises(grebe.BackendError, match=r"kernel \w+ can run 64 threads .* it needs"):
        load().session().prefill([1])


def test_dimensions_beyond_threadgroup_memory_are_refused(load: Load, tmp_path: Path) -> None:
    shape = replace(Shape(), head_dim=8192, rope_dim=64, index_head_dim=64)
    model = load(tiny_model(shape).write(tmp_path / "m.gguf"))
    with pytest.raises(grebe.BackendError, match="bytes of threadgroup memory"):
        model.session().prefill([1, 2, 3])


@pytest.mark.skipif(ON_A_MAC, reason="of the simulated device")
def test_the_budget_is_that_of_the_process(load: Load, fake) -> None:
    """Models share the device: a second one that would not fit beside the first is refused."""
    gc.collect()
    others = fake["buffer_bytes"]  # what fixtures of other tests hold
    model = load()
    model.session().prefill([1])
    one = fake["buffer_bytes"] - others
    # below 4 GiB half of it is the budget: room for one and a half
    fake["working_set_bytes"] = 2 * (others + one + one // 2)
    with pytest.raises(grebe.OutOfMemoryError, match="are in use"):
        load().session().prefill([1])
    model.close()
    gc.collect()
    load().session().prefill([1])


@pytest.mark.skipif(ON_A_MAC, reason="of the simulated device")
def test_a_closed_session_gives_its_memory_back(load: Load, fake) -> None:
    """Also while the step after its last one lies recorded."""
    model = load()
    kept = model.session()
    kept.prefill([1])
    kept.decode(2)
    before = fake["buffers"]
    others = [model.session() for _ in range(5)]
    for s in others:
        s.prefill([1])
    kept.decode(3)
    assert fake["buffers"] > before
    for s in others:
        s.close()
    assert fake["buffers"] == before


@pytest.mark.skipif(ON_A_MAC, reason="of the simulated device")
def test_a_device_fault_leaves_sessions_as_they_were(load: Load, fake) -> None:
    model = load()
    s = model.session()
    s.prefill(model.tokenizer.encode(PROMPT))
    before = s.snapshot()
    for code, error in ((1, grebe.BackendError), (8, grebe.OutOfMemoryError)):
        fake["fail_command_code"] = code
        fake["fail_command"] = 1
        with pytest.raises(error, match="the device stopped"):
            s.decode(5)
        assert s.snapshot() == before
    s.decode(5)
    fake["fail_allocation"] = 1
    with pytest.raises(grebe.OutOfMemoryError):
        model.session()
    fake["fail_library"] = 1
    with pytest.raises(grebe.BackendError, match="do not compile here"):
        load().session().prefill([1])


def test_a_forked_child_lets_go(load: Load) -> None:
    """The device stays with the parent: the child gets an error, and may drop what it inherited."""
    model = load()
    s = model.session()
    s.prefill([1, 2, 3])
    s.decode(4)  # the next step is recorded
    child = os.fork()
    if child == 0:
        status = 1
        try:
            try:
                s.decode(5)
            except grebe.GrebeError:
                status = 2
            try:
                model.session()
            except grebe.GrebeError:
                status = 0 if status == 2 else 3
            s.close()
            model.close()
            del s, model
            gc.collect()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0
    s.decode(5)


@pytest.mark.skipif(ON_A_MAC, reason="of the simulated device")
def test_no_object_outlives_the_model(load: Load, fake) -> None:
    live = fake["live_objects"]
    with load() as model, model.session() as s:
        s.prefill([1, 2, 3])
        s.decode(4)
    end = time.monotonic() + 10  # the last command buffer goes a moment after its end was signalled
    while fake["live_objects"] > live and time.monotonic() < end:
        time.sleep(0.01)
    assert fake["live_objects"] <= live


# ---- what a decoded token costs on Flash's shapes


def test_a_token_of_flash_reads_what_it_must(load: Load, fake, tmp_path: Path) -> None:
    """Bytes within 5 % of the least that any engine must read; few dispatches. See docs/metal.md."""
    from benchmarks.metal_dispatches import ideal_bytes, trace

    shape = replace(FLASH, ratios=(0, 4, 128, 4, 128), hash_layers=1)
    fake["execute"] = 0
    fake["working_set_bytes"] = 64 << 30
    fake["max_buffer_bytes"] = 32 << 30
    model = load(flash_model(shape).write(tmp_path / "flash.gguf"), prefill_chunk=4096)
    s = model.session()
    for depth, most in ((512, 12), (8192, 14)):
        s.prefill([5] * depth)
        s.decode(5)
        records = trace(model)
        least = sum(ideal_bytes(model, depth))
        assert least <= sum(n for *_, n in records) <= 1.05 * least
        assert len(records) <= most * len(shape.ratios) + 6


def test_auto_means_metal_where_there_is_one(load: Load) -> None:
    assert grebe.Model.load().options["backend"] == "metal"


def test_greedy_reference_of_the_trainer(load: Load) -> None:
    trained = json.loads((models.VECTORS / "nano-greedy.json").read_text())
    s = load(kernels="exact").session()
    s.prefill(trained["prompt_ids"])
    assert greedy(s, len(trained["greedy_ids"])) == trained["greedy_ids"]


def test_a_cache_on_the_device(load: Load, tmp_path: Path) -> None:
    """Blocks and anchors come back from disk with all their rows; the CPU does not take them for its own."""
    ids = models.tokens("tiny_gguf") * 20
    ids = [t + i % 3 for i, t in enumerate(ids[:700])]
    model = load("tiny_gguf")
    with model.open_cache(tmp_path / "kv", ram_bytes=0) as cache:
        with cache.session() as s:
            s.prefill(ids)
            want = s.logits
        assert cache.flush()
        cache.trim()
        with cache.session() as s:
            assert s.prefill(ids) == 700 - 640
            assert relative_rms(s.logits, want) < 1e-5
            assert cache.stats().blocks_from_disk == 1
            copy = s.fork()
            assert greedy(s, 2) == greedy(copy, 2)
    cpu = models.load("tiny_gguf")
    with cpu.open_cache(tmp_path / "kv") as cache, cache.session() as s:
        assert s.prefill(ids) == 700
