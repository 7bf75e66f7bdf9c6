"""Play a load against an engine and note when each token arrives. Not a command; used by `tools/bench_serving.py`."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tools.bench_loads import After, Load, Request

__all__ = ["Ask", "Reply", "Trace", "play"]


@dataclass(frozen=True)
class Reply:
    """The end of an answer: its token ids, and how many of the prompt's tokens the engine did not compute again.

    tokens: up to the first one whose id the engine did not tell.
    """

    tokens: Sequence[int]
    cached: int


Ask = Callable[[Sequence[int], int, Callable[[int], None]], Awaitable[Reply]]
"""An engine: `await ask(prompt, answer, made)` continues token ids greedily by exactly `answer` tokens, end tokens
included. It calls `made(n)` whenever it has made more tokens, n in all so far."""


@dataclass
class Trace:
    """A request as it went; times are in seconds after the load began.

    prompt: its tokens, including those of what it continues. due: when it had to begin. times: when each token of the
    answer arrived. cached: prompt tokens that were not computed.
    """

    prompt: int = 0
    due: float = 0.0
    times: list[float] = field(default_factory=list)
    cached: int = 0


async def play(load: Load, ask: Ask) -> list[Trace]:
    """Send the requests at their moments, and wait for all answers; a trace for each request.

    Raises ExceptionGroup with the errors of `ask`.
    """
    player = _Player(load, ask)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(player.run(index)) for index in range(len(load.requests))]
        if load.until is not None:
            await tasks[load.until]
            for task in tasks:
                task.cancel()
    return player.traces


class _Player:
    def __init__(self, load: Load, ask: Ask) -> None:
        self.traces = [Trace() for _ in load.requests]
        self._requests = load.requests
        self._ask = ask
        self._texts: list[list[int]] = [[] for _ in load.requests]  # prompt and answer
        self._moments = {each.begins: asyncio.Event() for each in load.requests if isinstance(each.begins, After)}
        self._begin = time.perf_counter()

    async def run(self, index: int) -> None:
        request, trace = self._requests[index], self.traces[index]
        trace.due = await self._due(request)
        history = [] if request.continues is None else self._texts[request.continues]
        prompt = [*history, *request.prompt]
        trace.prompt = len(prompt)

        def made(count: int) -> None:
            trace.times += [self._now()] * (count - len(trace.times))
            self._reached(index, count)

        reply = await self._ask(prompt, request.answer, made)
        if len(trace.times) != request.answer:
            raise RuntimeError(f"request {index} was answered with {len(trace.times)} tokens, not {request.answer}")
        trace.cached = reply.cached
        self._texts[index] = [*prompt, *reply.tokens]
        self._reached(index, None)

    async def _due(self, request: Request) -> float:
        """Wait until the request begins; the time at which it should."""
        if isinstance(request.begins, After):
            await self._moments[request.begins].wait()
            return self._now()
        await asyncio.sleep(request.begins - self._now())
        return request.begins

    def _reached(self, index: int, count: int | None) -> None:
        """Let those begin that waited for the request's `count` tokens, or with None for its end."""
        for moment, event in self._moments.items():
            if moment.request == index and (count is None or (moment.tokens is not None and count >= moment.tokens)):
                event.set()

    def _now(self) -> float:
        return time.perf_counter() - self._begin
