"""Ctrl-C, which comes to the main thread at any point: no other caller is harmed, and the model goes on."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import pytest
from guessing import Guessing
from numpy.typing import NDArray

import mistral_portable as mp
from mistral_portable.errors import BusyError

PROMPT = list(range(5, 105))
BEGINS_ALIKE = [*PROMPT[:80], 910, 911]
OTHER = [950, 951, 952]
PROMPTS = (PROMPT, BEGINS_ALIKE, OTHER)
OPTIONS: dict[str, Any] = {"max_tokens": 10, "temperature": 0, "ignore_eos": True}

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that send signals")


def answers(model: mp.Model) -> list[tuple[int, ...]]:
    return [model.generate(prompt, **OPTIONS).tokens for prompt in PROMPTS]


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, ...]]:
    with mp.load("tiny", backend="numba", window=64, threads=1, cache_bytes=0, draft="off") as model:
        return answers(model)


def interrupt(call: Callable[[], object], seconds: float) -> None:
    """Call a function, in which a real signal raises KeyboardInterrupt unless it takes less time."""

    def raises(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, raises)
    try:
        with suppress(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, seconds)
            call()
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


class InTurn:
    """A grammar, and a constraint of it: the tokens 300 to 399 one after the other, twice. It says of nine in ten that
    they are forced."""

    tokens: ClassVar[list[int]] = [*range(300, 400)] * 2

    def __init__(self) -> None:
        self._known = 0

    def begin(self, prompt_tokens: Sequence[int]) -> "InTurn":
        return InTurn()

    def allowed(self) -> NDArray[np.bool_]:
        allowed: NDArray[np.bool_] = np.arange(1024) == self.tokens[self._known]
        return allowed

    @property
    def forced(self) -> int | None:
        return self.tokens[self._known] if self._known % 10 and self._known < len(self.tokens) else None

    def accept(self, token: int) -> None:
        assert token == self.tokens[self._known]
        self._known += 1

    def copy(self) -> "InTurn":
        other = InTurn()
        other._known = self._known
        return other


def generate_until_interrupted(model: mp.Model, seconds: float) -> None:
    timer = threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    model.generate(PROMPT, max_tokens=3000, ignore_eos=True)
    timer.join()


@pytest.mark.parametrize("draft", ["off", "suffix", "model"])
def test_ctrl_c_at_any_time(expected: list[tuple[int, ...]], draft: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that the main thread has open may end by it, but never with another text."""
    guesses = Guessing(0, 0.3, most=4)
    guesses.texts += [(*prompt, *text) for prompt, text in zip(PROMPTS, expected, strict=True)]
    monkeypatch.setattr(import_module("mistral_portable.engine.load"), "SuffixDrafting", lambda: guesses)
    # The same model guesses for itself, as far as it may: its clocks would say that this does not pay.
    drafting = import_module("mistral_portable.engine.model_drafting")
    monkeypatch.setattr(drafting, "best_lengths", lambda chances, seconds: [len(some) for some in chances])
    guessing = mp.load("tiny", backend="numba", window=64, threads=1, draft="off", max_lanes=16)
    source = guessing if draft == "model" else draft
    loaded = mp.load("tiny", backend="numba", window=64, threads=1, draft=source)
    with guessing, loaded as model, ThreadPoolExecutor(1) as pool:
        for number in range(1, 150):
            open_stream = model.stream(PROMPT, **OPTIONS)
            next(open_stream)
            interrupt(lambda: model.generate(BEGINS_ALIKE, **OPTIONS), number * 5e-5)
            assert pool.submit(answers, model).result(60) == expected
            assert answers(model) == expected
            with suppress(BusyError):
                list(open_stream)
                assert open_stream.generation.tokens == expected[0]
            assert open_stream.generation.tokens == expected[0][: len(open_stream.generation.tokens)]
            assert model.manager.lanes == ()
        model.generate(PROMPT, **OPTIONS)
        assert guessing.manager.lanes == ()
        assert (guesses.proposed > 0) == (draft == "suffix")


def test_ctrl_c_at_any_time_while_a_grammar_leaves_no_choice() -> None:
    """A token that the grammar knows and the answer lacks is found: the answer may end by it, but leaves none out."""
    with mp.load("tiny", backend="numba", window=64, threads=1) as model:
        for number in range(1, 300):
            open_stream = model.stream(PROMPT, max_tokens=200, temperature=0, grammar=InTurn())
            next(open_stream)
            interrupt(lambda: model.generate(OTHER, **OPTIONS), number * 2e-5)
            with suppress(BusyError):
                list(open_stream)
                assert len(open_stream.generation.tokens) == 200
            found = open_stream.generation.tokens
            assert list(found) == InTurn.tokens[: len(found)]
            assert model.manager.lanes == ()


def test_ctrl_c_leaves_other_threads_alone(expected: list[tuple[int, ...]]) -> None:
    """The threads' requests and the main thread's are in the same steps."""
    wrong, done, ended = [], threading.Event(), 0

    def generate(model: mp.Model) -> None:
        while not done.is_set():
            if (found := answers(model)) != expected:
                wrong.append(found)

    # What a shell runs in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with mp.load("tiny", backend="numba", window=64, threads=1) as model, ThreadPoolExecutor(3) as pool:
        running = [pool.submit(generate, model) for _ in range(2)]
        try:
            for number in range(40):
                # Python drops an interruption that comes while an object is finalized: the answer then ends by itself.
                with suppress(KeyboardInterrupt):
                    generate_until_interrupted(model, 0.01 + 0.0007 * number)
                    ended += 1
        finally:
            signal.signal(signal.SIGINT, before)
            done.set()
        for future in running:
            future.result(60)
        assert answers(model) == expected
        assert not wrong
        assert ended < 20
        assert model.manager.lanes == ()


def test_ctrl_c_at_any_time_while_stages_work(expected: list[tuple[int, ...]]) -> None:
    """Steps that have begun go on in their processes; no answer has another's tokens."""
    with (
        mp.load("tiny", backend="numba", window=64, threads=1, draft="off", stages=2) as model,
        ThreadPoolExecutor(1) as pool,
    ):
        for number in range(1, 60):
            open_stream = model.stream(PROMPT, **OPTIONS)
            next(open_stream)
            interrupt(lambda: model.generate(PROMPTS, **OPTIONS), number * 2e-4)
            assert pool.submit(answers, model).result(60) == expected
            with suppress(BusyError):
                list(open_stream)
                assert open_stream.generation.tokens == expected[0]
            assert open_stream.generation.tokens == expected[0][: len(open_stream.generation.tokens)]
            assert model.manager.lanes == ()
