"""What a generation withstands: other users of its session, hooks that raise, cancellations in any number."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import aclosing

import grebe
import numpy as np
import pytest
from grebe import _engine

PROMPT = [0, 2383, 692, 262, 623, 14, 493, 315, 262]


@pytest.fixture(scope="module")
def model():
    with grebe.Model.load(n_threads=1) as model:
        yield model


@pytest.fixture
def session(model):
    with model.session(n_ctx=1024) as session:
        yield session


# ------------------------------------------------------------------ one session, several users


def test_two_generations_on_one_session_do_not_mix(session):
    """Both are at the same position, so that only a count of changes can tell."""
    one = session.generate(PROMPT, max_tokens=8)
    two = session.generate([*PROMPT[:-1], 5], max_tokens=8)
    next(one)
    next(two)
    with pytest.raises(grebe.InvalidArgumentError, match="moved"):
        next(one)
    assert len(list(two)) == 7


@pytest.mark.parametrize(
    "move",
    [
        lambda s: s.prefill(PROMPT[:4]),
        lambda s: s.evaluate([1]),
        lambda s: s.rewind(len(PROMPT) - 1),
        lambda s: s.model.step([(s, [1])]),
        lambda s: (s.decode(1), s.rewind(len(PROMPT))),  # back where it was
    ],
)
def test_every_change_is_noticed(session, move):
    generation = session.generate(PROMPT)
    next(generation)
    move(session)
    with pytest.raises(grebe.InvalidArgumentError, match="moved"):
        next(generation)


def test_looking_is_no_change(session):
    generation = session.generate(PROMPT, max_tokens=4)
    next(generation)
    session.fork().decode(1)
    session.snapshot()
    assert session.logits.shape == (8192,)
    assert len(list(generation)) == 3


def test_a_second_thread_is_refused_and_the_first_unharmed(model, session):
    inside, proceed, events = threading.Event(), threading.Event(), []

    def mask(tokens):
        inside.set()
        proceed.wait(10)

    generation = session.generate(PROMPT, max_tokens=4, sampling=grebe.Sampling(mask=mask))
    thread = threading.Thread(target=lambda: events.extend(generation))
    thread.start()
    assert inside.wait(10)
    for _ in range(3):
        with pytest.raises(grebe.InvalidArgumentError, match="already executing"):
            next(generation)
    proceed.set()
    thread.join()
    assert [e.token for e in events] == list(model.complete(PROMPT, max_tokens=4).tokens)


def test_a_sampler_serves_one_thread_at_a_time():
    sampler = _engine.Sampler(vocab_size=1 << 22, temperature=1.0)
    logits = np.zeros(1 << 22, np.float32)
    outcomes = []

    def sample():
        for _ in range(5):
            try:
                outcomes.append(sampler.sample(logits)[0])
            except grebe.InvalidArgumentError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=sample) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(isinstance(o, int) for o in outcomes)
    assert {o for o in outcomes if isinstance(o, str)} == {
        "the sampler is busy: a call in another thread uses it"
    }


def test_lists_of_a_generation_are_copies(session):
    seen = []
    generation = session.generate(
        PROMPT, max_tokens=3, sampling=grebe.Sampling(mask=lambda tokens: seen.append(tokens))
    )
    for _ in generation:
        generation.tokens.clear()
        generation.prompt.append(1)
    assert [len(tokens) for tokens in seen] == [0, 1, 2]
    assert len(generation.tokens) == 3
    assert generation.prompt == PROMPT


# ------------------------------------------------------------------ hooks


@pytest.mark.parametrize("where", ["mask", "progress"])
@pytest.mark.parametrize("error", [StopIteration, grebe.CancelledError, KeyError])
def test_what_hooks_raise_arrives(session, where, error):
    def hook(*_):
        raise error("mine")

    options = {"on_progress": hook}
    if where == "mask":
        options = {"sampling": grebe.Sampling(mask=hook)}
    generation = session.generate(PROMPT, **options)
    expected = RuntimeError if error is StopIteration else error
    with pytest.raises(expected) as caught:
        list(generation)
    if error is StopIteration:
        assert isinstance(caught.value.__cause__, StopIteration)
    assert generation.finish_reason is None
    assert "ended" in repr(generation)


# ------------------------------------------------------------------ ends


def test_close_and_with(session):
    with session.generate(PROMPT, max_tokens=9) as generation:
        next(generation)
        assert repr(generation) == (
            "<grebe.Generation running, 1 of at most 9 tokens after a prompt of 9>"
        )
    generation.close()
    assert generation.finish_reason == "cancelled"
    assert list(generation) == []
    with session.generate(PROMPT, max_tokens=1) as generation:
        list(generation)
    assert generation.finish_reason == "length"


@pytest.mark.parametrize("end", [grebe.Generation.cancel, grebe.Generation.close])
def test_a_cancelled_generation_gives_what_it_held(model, session, end):
    text = model.complete(PROMPT, max_tokens=3).text
    generation = session.generate(PROMPT, stop=text + "\0")  # all of it may be the beginning
    events = [next(generation) for _ in range(3)]
    assert "".join(e.text for e in events) == ""
    end(generation)
    assert list(generation) == []
    assert generation.text == text
    assert generation.finish_reason == "cancelled"


def test_logits_after_a_cancelled_prefill_say_why():
    with grebe.Model.load(n_threads=1, prefill_chunk=16) as model, model.session() as s:

        def refuse(done, total):
            raise KeyError

        with pytest.raises(KeyError):
            s.prefill([7] * 64, refuse)
        assert s.pos > 0
        with pytest.raises(grebe.InvalidArgumentError, match="cancelled"):
            _ = s.logits
        s.prefill([7] * 64)
        assert s.logits.shape == (8192,)


def test_ctrl_c_between_tokens_loses_no_token(session):
    generation = session.generate(PROMPT, max_tokens=None)
    events = []
    with pytest.raises(KeyboardInterrupt):
        for event in generation:
            events.append(event)
            if len(events) == 3:
                threading.Timer(0.02, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    tokens = PROMPT + [e.token for e in events]
    assert session.tokens == (PROMPT + generation.tokens)[: session.pos]
    assert session.pos >= len(tokens) - 1
    assert session.prefill(tokens) <= 1


# ------------------------------------------------------------------ async


def test_a_second_cancel_does_not_leave_the_session_busy(model):
    entered, proceed = threading.Event(), threading.Event()

    def hold(done, total):
        entered.set()
        proceed.wait(10)

    async def main(work):
        task = asyncio.ensure_future(work)
        while not entered.is_set():
            await asyncio.sleep(0.001)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
        assert not task.done()
        proceed.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def drain(s):
        async for _ in s.agenerate(PROMPT, on_progress=hold):
            pass

    with model.session(n_ctx=64) as s:
        asyncio.run(main(drain(s)))
        s.decode(1)  # not busy
    entered.clear()
    proceed.clear()
    asyncio.run(main(model.acomplete(PROMPT, on_progress=hold)))


def test_errors_of_cancelled_work_are_not_reported_as_lost(model):
    entered, proceed, lost = threading.Event(), threading.Event(), []

    def hold(done, total):
        entered.set()
        proceed.wait(10)
        raise KeyError("of the hook")

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        task = asyncio.ensure_future(model.acomplete(PROMPT, on_progress=hold))
        while not entered.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0.01)
        proceed.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task

    asyncio.run(main())
    assert lost == []


def test_agenerate_can_be_closed(session):
    async def main():
        async with aclosing(session.agenerate(PROMPT)) as events:
            async for event in events:
                return event.token

    assert asyncio.run(main()) is not None
    session.decode(1)


def test_cancel_ends_a_prompt_between_two_layers():
    model = grebe.Model.load(n_threads=1, prefill_chunk=4096)
    with model.session() as s:
        prompt = [5] * 4096  # one chunk
        generation = s.generate(prompt, max_tokens=1)
        threading.Timer(0.05, generation.cancel).start()
        assert list(generation) == []
        assert generation.finish_reason == "cancelled"
        assert s.pos == 0  # the chunk was given up, and the session is as before it
        s.prefill(prompt[:8])
