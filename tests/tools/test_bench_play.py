"""Playing a load: requests begin at their moments, go on behind their history, and end in time."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from tools.bench_loads import After, Load, Request
from tools.bench_play import Reply, play


class Counting:
    """An engine whose answer to a prompt counts on from its last token, in steps of `seconds`."""

    def __init__(self, seconds: float = 0.0, lost: int = 0) -> None:
        """lost: tokens that are missing at the end of each answer."""
        self.prompts: list[list[int]] = []
        self.stopped: list[list[int]] = []
        self._seconds = seconds
        self._lost = lost

    async def ask(self, prompt: Sequence[int], answer: int, made: Callable[[int], None]) -> Reply:
        self.prompts.append(list(prompt))
        try:
            for count in range(1, answer - self._lost + 1):
                await asyncio.sleep(self._seconds)
                made(count)
        except asyncio.CancelledError:
            self.stopped.append(list(prompt))
            raise
        return Reply([prompt[-1] + count for count in range(1, answer + 1)], len(prompt) - 1)


def test_requests_begin_at_their_seconds() -> None:
    engine = Counting()
    late, early = Request((1, 2), 3, 0.2), Request((5,), 1, 0.05)
    traces = asyncio.run(play(Load((late, early)), engine.ask))
    assert engine.prompts == [[5], [1, 2]]
    assert [trace.due for trace in traces] == [0.2, 0.05]
    assert [len(trace.times) for trace in traces] == [3, 1]
    assert all(trace.times[0] >= trace.due for trace in traces)
    assert [(trace.prompt, trace.cached) for trace in traces] == [(2, 1), (1, 0)]


def test_a_turn_has_its_history_in_front() -> None:
    engine = Counting()
    turns = Request((1, 2), 3), Request((7,), 2, After(0), continues=0), Request((4,), 1, After(1), continues=1)
    traces = asyncio.run(play(Load(turns), engine.ask))
    assert engine.prompts == [[1, 2], [1, 2, 3, 4, 5, 7], [1, 2, 3, 4, 5, 7, 8, 9, 4]]
    assert [trace.prompt for trace in traces] == [2, 6, 9]
    assert traces[0].times[-1] <= traces[1].due <= traces[1].times[0]


def test_a_request_begins_when_another_has_made_its_tokens() -> None:
    engine = Counting(0.01)
    first, second = asyncio.run(play(Load((Request((1,), 8), Request((2,), 1, After(0, 4)))), engine.ask))
    assert first.times[3] <= second.due < first.times[5]


def test_several_tokens_at_once_arrive_together() -> None:
    async def ask(prompt: Sequence[int], answer: int, made: Callable[[int], None]) -> Reply:
        made(0)
        made(1)
        made(3)
        return Reply([], 0)

    (trace,) = asyncio.run(play(Load((Request((1,), 3),)), ask))
    assert trace.times[1] == trace.times[2]


def test_the_load_ends_with_the_request_that_it_names() -> None:
    engine = Counting(0.01)
    endless = [Request((token,), 10**6) for token in (1, 2)]
    traces = asyncio.run(play(Load((*endless, Request((9,), 2, After(0, 3))), until=2), engine.ask))
    assert sorted(engine.stopped) == [[1], [2]]
    assert len(traces[2].times) == 2
    assert all(3 <= len(trace.times) < 100 for trace in traces[:2])


def test_a_short_answer_is_an_error() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(play(Load((Request((1,), 4),)), Counting(lost=1).ask))
    assert caught.group_contains(RuntimeError, match="request 0 was answered with 3 tokens, not 4")


@pytest.mark.parametrize("until", [None, 0])
def test_a_failed_request_ends_the_load(until: int | None) -> None:
    async def ask(prompt: Sequence[int], answer: int, made: Callable[[int], None]) -> Reply:
        if len(prompt) == 2:
            raise ValueError("no room")
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(play(Load((Request((1, 2), 1), Request((1,), 1)), until), ask))
    assert caught.group_contains(ValueError, match="no room")
