"""One loop for all callers: whoever comes, waits, is put aside or leaves, every answer is the one it gets alone."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import import_module
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mistral_portable_numba.program as numba_executor
import numpy as np
import pytest
from guessing import Guessing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import mistral_portable as mp
from mistral_portable.boundary import Step
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.cache import Chunk, StepPlan
from mistral_portable.config import Window
from mistral_portable.engine.pace import Pace
from mistral_portable.errors import BusyError, CapacityError, ClosedError, InputError, NumericsError
from mistral_portable.testing.greedy import ByHost

LANES = 2
PROMPT = "Once upon a time"


# Of a slot of the tiny model's float16 cache, and of four pages: one sequence fits, two do only while they are short.
SLOT_BYTES = 2 * 2 * 2 * 32 * 4
FOUR_PAGES = 4 * 64 * SLOT_BYTES

GUESSES = Guessing(0, 1 / 3)


class Submitting(numba_executor.NumbaProgram):
    """Chooses greedy tokens, so that the loop begins a step before it reads the one before."""

    def submit(self, plan: StepPlan, inputs: Inputs = NO_INPUTS, *, after: Step | None = None) -> Step:
        return ByHost(self).submit(plan, inputs, after=after)


@cache
def loaded(window: Window, lanes: int, cache_bytes: int | None, ahead: bool = False, drafts: bool = False) -> mp.Model:
    """A model of an executor whose bits do not depend on the batch. ahead: whether its greedy steps are submitted.
    drafts: whether steps try tokens, of which a third is wrong."""
    with pytest.MonkeyPatch.context() as patch:
        if ahead:
            patch.setattr(numba_executor, "NumbaProgram", Submitting)
        patch.setattr(import_module("mistral_portable.engine.load"), "SuffixDrafting", lambda: GUESSES)
        return mp.load(
            "tiny",
            backend="numba",
            threads=1,
            window=window,
            max_lanes=lanes,
            max_context=140,
            cache_bytes=cache_bytes,
            draft="suffix" if drafts else "off",
        )


@cache
def alone(window: Window, prompt: tuple[int, ...], temperature: float, seed: int) -> tuple[int, ...]:
    tokens = loaded(window, 1, 0).generate(prompt, temperature=temperature, seed=seed, max_tokens=90).tokens
    GUESSES.texts = [*GUESSES.texts[-20:], (*prompt, *tokens)]
    return tokens


class Callers(RuleBasedStateMachine):
    """Streams of one model, taken from in any order, beside whole answers and logits."""

    @initialize(
        window=st.one_of(st.integers(1, 8), st.none()),
        cache_bytes=st.sampled_from([None, 0, FOUR_PAGES]),
        ahead=st.booleans(),
        drafts=st.booleans(),
    )
    def load(self, window: Window, cache_bytes: int | None, ahead: bool, drafts: bool) -> None:
        self.window, self.cache_bytes = window, cache_bytes
        self.model = loaded(window, LANES, cache_bytes, ahead, drafts)
        self.texts: list[tuple[int, ...]] = []  # of answers, with their prompts
        self.streams: list[tuple[mp.TextStreamer, tuple[int, ...]]] = []

    def request(self, prompt: list[int], temperature: float) -> tuple[dict[str, Any], tuple[int, ...]]:
        seed = sum(prompt)
        expected = alone(self.window, tuple(prompt), temperature, seed)
        return {"temperature": temperature, "seed": seed, "max_tokens": 90}, expected

    prompts = st.lists(st.integers(5, 1000), min_size=1, max_size=40)

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), more=st.lists(st.integers(5, 1000), max_size=5), cut=st.integers(0, 70))
    def go_on(self, data: st.DataObject, more: list[int], cut: int) -> None:
        """A prompt that begins as an earlier text does."""
        text = data.draw(st.sampled_from(self.texts))
        prompt = [*text[: max(1, min(45, len(text) - cut))], *more]
        options, expected = self.request(prompt, 0.0)
        assert self.model.generate(prompt, **options).tokens == expected

    temperatures = st.sampled_from([0.0, 1.0])

    @rule(prompt=prompts, temperature=temperatures, priority=st.integers(0, 1))
    def open(self, prompt: list[int], temperature: float, priority: int) -> None:
        options, expected = self.request(prompt, temperature)
        self.streams.append((self.model.stream(prompt, priority=priority, **options), expected))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), pieces=st.integers(1, 80))
    def advance(self, data: st.DataObject, pieces: int) -> None:
        streamer, expected = data.draw(st.sampled_from(self.streams))
        for _ in range(pieces):
            if next(streamer, None) is None:
                break
        found = streamer.generation.tokens
        assert found == expected[: len(found)]
        if streamer.generation.finish_reason:
            assert found == expected

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), dropped=st.booleans())
    def leave(self, data: st.DataObject, dropped: bool) -> None:
        streamer, _ = self.streams.pop(data.draw(st.integers(0, len(self.streams) - 1)))
        if not dropped:
            streamer.close()

    @rule(several=st.lists(st.tuples(prompts, temperatures), min_size=1, max_size=4))
    def generate(self, several: list[tuple[list[int], float]]) -> None:
        requests = [self.request(prompt, temperature) for prompt, temperature in several]
        found = self.model.generate([prompt for prompt, _ in several], [mp.SamplingParams(**o) for o, _ in requests])
        assert [generation.tokens for generation in found] == [expected for _, expected in requests]
        self.texts += [(*prompt, *made.tokens) for (prompt, _), made in zip(several, found, strict=True)]

    @rule(prompt=prompts, sizes=st.lists(st.integers(1, 9), min_size=1))
    def step(self, prompt: list[int], sizes: list[int]) -> None:
        """Read a prompt by hand, in chunks of any size, and go on from it in a second lane that shares its pages."""
        expected = alone(self.window, tuple(prompt), 0.0, sum(prompt))
        manager, ends = self.model.manager, [*accumulate(sizes), len(prompt)]
        with suppress(BusyError, CapacityError), self.model.lane() as lane:
            for begin, end in pairwise([0, *sorted({min(end, len(prompt)) for end in ends})]):
                logits = self.model.step([Chunk(lane, prompt[begin:end], [end - begin - 1])])
            assert logits.argmax() == expected[0]
            other = manager.fork(lane)
            try:
                for at, token in enumerate(expected[:4]):
                    (row,) = self.model.step([Chunk(other, [token], [0])])
                    assert len(expected) == at + 1 or row.argmax() == expected[at + 1]
                manager.rollback(other, manager.length(other) - 1)
                assert self.model.step([Chunk(lane, [expected[0]], [0])]).argmax() == [*expected, row.argmax()][1]
            finally:
                manager.close(other)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def session(self, data: st.DataObject) -> None:
        """Write what is known of a text to a file, forget it, and read the file."""
        text = data.draw(st.sampled_from(self.texts))
        with TemporaryDirectory() as folder:
            path = Path(folder) / "text"
            if self.cache_bytes == 0:
                with pytest.raises(InputError, match="nothing is kept"):
                    self.model.save_session(path, text)
                return
            try:
                saved = self.model.save_session(path, text)
            except (BusyError, CapacityError, InputError):  # no lane is free, or the text has given way
                return
            self.model.manager.forget()
            with suppress(BusyError, CapacityError):
                assert 0 <= self.model.load_session(path) <= saved < len(text) + 1

    @rule(prompt=prompts, chunk=st.sampled_from([None, 1, 3]))
    def score(self, prompt: list[int], chunk: int | None) -> None:
        whole, cut = self.model.logits(prompt), self.model.logits(prompt, chunk)
        assert np.array_equal(whole, cut)

    @invariant()
    def lanes_hold(self) -> None:
        assert len(self.model.manager.lanes) <= LANES
        if self.cache_bytes:
            assert self.model.manager.bytes_in_use <= self.cache_bytes

    def teardown(self) -> None:
        self.streams.clear()
        gc.collect()
        assert self.model.manager.lanes == ()


TestCallers = Callers.TestCase
# Each example writes up to a thousand tokens.
TestCallers.settings = settings(max_examples=12, stateful_step_count=15)


@pytest.fixture(scope="module")
def model() -> Iterator[mp.Model]:
    with mp.load("tiny", backend="numba", max_lanes=3) as model:
        yield model


@pytest.fixture
def steps(model: mp.Model, monkeypatch: pytest.MonkeyPatch) -> list[StepPlan]:
    """The plans of all steps from now on."""
    plans: list[StepPlan] = []
    step = model.program.step

    def counted(plan: StepPlan, inputs: Inputs) -> Any:
        plans.append(plan)
        return step(plan, inputs)

    monkeypatch.setattr(model.program, "step", counted)
    return plans


def answers(model: mp.Model, count: int, **options: Any) -> list[tuple[int, ...]]:
    return [model.generate(PROMPT, seed=seed, **options).tokens for seed in range(count)]


# --- together --------------------------------------------------------------------------------------------------------


def test_callers_share_their_steps(model: mp.Model, steps: list[StepPlan]) -> None:
    expected = answers(model, 3, max_tokens=20, ignore_eos=True)
    taken = len(steps)
    steps.clear()
    found = model.generate([PROMPT] * 3, [mp.SamplingParams(seed=s, max_tokens=20, ignore_eos=True) for s in range(3)])
    assert [generation.tokens for generation in found] == expected
    assert len(steps) == taken / 3
    assert {len(plan.lanes) for plan in steps} == {3}


def test_more_threads_than_lanes_wait_their_turn(model: mp.Model) -> None:
    expected = answers(model, 24, max_tokens=12)
    with ThreadPoolExecutor(24) as pool:
        found = pool.map(lambda seed: model.generate(PROMPT, seed=seed, max_tokens=12).tokens, range(24))
    assert list(found) == expected
    assert model.manager.lanes == ()


def test_coroutines(model: mp.Model) -> None:
    expected = answers(model, 24, max_tokens=12)

    async def all_of_them() -> list[mp.Generation]:
        return await asyncio.gather(*(model.agenerate(PROMPT, seed=seed, max_tokens=12) for seed in range(24)))

    async def pieces() -> str:
        return "".join([piece async for piece in model.astream(PROMPT, seed=0, max_tokens=12)])

    threads = threading.active_count()
    for _ in range(3):
        assert [generation.tokens for generation in asyncio.run(all_of_them())] == expected
        assert asyncio.run(pieces()) == model.generate(PROMPT, seed=0, max_tokens=12).text
    assert model.manager.lanes == ()
    for thread in threading.enumerate():
        if thread.name == "mistral_portable.Loop":
            thread.join(10)
    assert threading.active_count() == threads


def test_coroutines_that_are_cancelled_give_their_lanes_back(model: mp.Model) -> None:
    async def impatient() -> None:
        tasks = [asyncio.create_task(model.agenerate(PROMPT, max_tokens=5000, ignore_eos=True)) for _ in range(6)]
        stream = model.astream(PROMPT, max_tokens=5000, ignore_eos=True)
        await anext(stream)
        await stream.aclose()
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(impatient())
    assert len(model.generate(PROMPT, max_tokens=3).tokens) == 3
    assert model.manager.lanes == ()


def test_a_stream_that_nobody_takes_from_stands_still_and_gives_way(model: mp.Model, steps: list[StepPlan]) -> None:
    options: dict[str, Any] = {"max_tokens": 300, "temperature": 0, "ignore_eos": True}
    expected = model.generate(PROMPT, **options)
    streams = [model.stream(PROMPT, **options) for _ in range(3)]
    texts = [next(stream) for stream in streams]
    steps.clear()
    assert model.generate(PROMPT, **options).text == expected.text
    assert len(steps) < 2 * 300
    assert [text + "".join(stream) for text, stream in zip(texts, streams, strict=True)] == [expected.text] * 3


def test_parts_of_logits_that_were_put_aside_come_once(model: mp.Model) -> None:
    tokens = [5 + 7 * at % 1000 for at in range(1800)]
    parts = [model.logits_parts(tokens, first=3) for _ in range(3)]
    made = [[next(some)] for some in parts]
    model.generate(PROMPT, priority=1, max_tokens=3)  # takes a lane of theirs
    expected = model.logits(tokens)[3:]
    for some, rest in zip(made, parts, strict=True):
        assert np.array_equal(np.concatenate([*some, *rest]), expected)


def test_an_urgent_request_takes_the_lane_of_another(model: mp.Model) -> None:
    options: dict[str, Any] = {"max_tokens": 50, "temperature": 0, "ignore_eos": True}
    expected = model.generate(PROMPT, **options).tokens
    streams = [model.stream(PROMPT, **options) for _ in range(3)]
    for stream in streams:
        next(stream)
    assert model.generate(PROMPT, priority=1, **options).tokens == expected
    for stream in streams:
        for _ in stream:
            pass
        assert stream.generation.tokens == expected


# --- faults ----------------------------------------------------------------------------------------------------------


def test_an_error_of_one_row_ends_that_request_alone(model: mp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.generate(PROMPT, max_tokens=12, temperature=0).tokens
    step = model.program.step

    def broken(plan: StepPlan, inputs: Inputs) -> Any:
        outputs = step(plan, inputs)
        outputs["logits"][plan.tokens[plan.logit_rows] == 777] = np.nan
        return outputs

    monkeypatch.setattr(model.program, "step", broken)
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(model.generate, [5, 777], max_tokens=12)
        good = pool.submit(model.generate, PROMPT, max_tokens=12, temperature=0)
        with pytest.raises(NumericsError, match="is nan"):
            bad.result()
        assert good.result().tokens == expected
    assert model.manager.lanes == ()


def test_a_step_that_fails_ends_those_in_it_and_the_loop_goes_on(
    model: mp.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(plan: StepPlan, inputs: Inputs) -> Any:
        raise RuntimeError("the device fell over")

    with monkeypatch.context() as patch:
        patch.setattr(model.program, "step", fails)
        for prompts in (PROMPT, [PROMPT, "A"]):
            with pytest.raises(RuntimeError, match="fell over"):
                model.generate(prompts, max_tokens=3)
    assert model.manager.lanes == ()
    assert len(model.generate(PROMPT, max_tokens=3, ignore_eos=True).tokens) == 3


def test_where_memory_is_short_fewer_run_at_a_time(model: mp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
    expected = model.generate(PROMPT, **options).tokens
    step = model.program.step

    def short(plan: StepPlan, inputs: Inputs) -> Any:
        if len(plan.lanes) > 1 and plan.positions.max() > 20:
            raise CapacityError("no memory")
        return step(plan, inputs)

    monkeypatch.setattr(model.program, "step", short)
    assert [found.tokens for found in model.generate([PROMPT] * 3, **options)] == [expected] * 3
    assert model.manager.lanes == ()


def test_a_request_that_was_left_before_it_began_takes_no_lane(model: mp.Model) -> None:
    first, second = (model.answer(PROMPT, None, max_tokens=5, ignore_eos=True) for _ in range(2))
    model.loop.leave(second.completion)
    for completion in model.loop.run([first.completion, second.completion]):
        assert completion is first.completion
        first.take()
    assert first.done
    assert model.manager.lanes == ()
    assert not second.completion.made


def test_a_lane_that_is_taken_by_hand_meanwhile_is_waited_for(model: mp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers(model, 2, max_tokens=5)
    opened = model.manager.resume
    refusals = [1, 2]

    def refuses_second(*arguments: Any, **options: Any) -> tuple[int, int]:
        if len(model.manager.lanes) == 1 and refusals:
            refusals.pop()
            raise BusyError("all lanes are taken")
        return opened(*arguments, **options)

    monkeypatch.setattr(model.manager, "resume", refuses_second)
    found = model.generate([PROMPT] * 2, [mp.SamplingParams(seed=seed, max_tokens=5) for seed in range(2)])
    assert [generation.tokens for generation in found] == expected
    assert not refusals


def interrupted(model: mp.Model, monkeypatch: pytest.MonkeyPatch, when: Callable[[StepPlan], bool]) -> None:
    step = model.program.step

    def ctrl_c(plan: StepPlan, inputs: Inputs) -> Any:
        outputs = step(plan, inputs)
        if when(plan):
            monkeypatch.setattr(model.program, "step", step)
            raise KeyboardInterrupt
        return outputs

    monkeypatch.setattr(model.program, "step", ctrl_c)


def test_ctrl_c_in_the_thread_that_runs_the_steps_is_no_fault_of_the_others(
    model: mp.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 0, "ignore_eos": True}
    expected = model.generate(PROMPT, **options).tokens
    first, second = model.stream(PROMPT, **options), model.stream(PROMPT, **options)
    next(first), next(second)
    interrupted(model, monkeypatch, lambda plan: len(plan.lanes) == 2)
    with pytest.raises(KeyboardInterrupt):
        for _ in first:
            pass
    assert first.generation.tokens == expected[: len(first.generation.tokens)]
    assert second.generation.tokens == expected[:1]
    for _ in second:
        pass
    assert second.generation.tokens == expected
    assert model.manager.lanes == ()


@pytest.mark.parametrize("taken", range(1, 10))
def test_ctrl_c_while_one_is_put_aside_whose_token_is_on_the_device(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read again from its first token, in chunks of 16, and not before that token is known."""
    model = loaded(None, LANES, 0, True)
    monkeypatch.setattr(Pace, "room", lambda *_: 16)
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
    prompts = [list(range(5, 13)), list(range(20, 28))]
    expected = [model.generate(prompt, **options).tokens for prompt in prompts]
    streams = [model.stream(prompt, **options) for prompt in prompts]
    next(streams[0])
    for _ in range(taken):
        next(streams[1])

    def ctrl_c(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model.core, "submit", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            next(model.stream(PROMPT, priority=1, **options))
    for stream in streams:
        for _ in stream:
            pass
    assert [stream.generation.tokens for stream in streams] == expected
    assert model.manager.lanes == ()


def test_what_a_step_would_have_read_that_fails_later_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def tokens(self) -> Any:
            raise RuntimeError("the device fell over")

    prompt = list(range(600, 730))
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0.0, "ignore_eos": True}
    model, expected = loaded(None, LANES, None, True), loaded(None, 1, 0).generate(prompt, **options).tokens
    with monkeypatch.context() as patch:
        patch.setattr(model.program, "submit", lambda *arguments, **options: Fails())
        with pytest.raises(RuntimeError, match="fell over"):
            model.generate(prompt, **options)
    found = model.generate(prompt, **options)
    assert (found.tokens, found.timings.cached_tokens) == (expected, 0)


def test_closing_a_model_ends_whoever_waits() -> None:
    model = mp.load("tiny", backend="numba", max_lanes=1)
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(model.generate, PROMPT, max_tokens=20000, ignore_eos=True) for _ in range(4)]
        while not model.manager.lanes:
            time.sleep(0.001)
        model.close()
        for future in running:
            with pytest.raises(ClosedError, match="load it again"):
                future.result(30)
    assert model.manager.lanes == ()
