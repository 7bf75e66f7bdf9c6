"""Steps: runs requests in shared steps, and hands out what each step has made."""

import copy
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import DrawingProgram, DrawnStep, GreedyProgram, Step
from mistral_portable.cache import Chunk, common_length
from mistral_portable.engine.chunks import CHUNK
from mistral_portable.engine.core import Core
from mistral_portable.engine.drafting import Drafting
from mistral_portable.engine.draws import draws_of
from mistral_portable.engine.flight import Flight
from mistral_portable.engine.lanes import RequestLanes
from mistral_portable.engine.request import Completion, Request, Scoring
from mistral_portable.engine.scheduler import Scheduler, Turn
from mistral_portable.engine.under_way import UnderWay
from mistral_portable.errors import (
    BusyError,
    CapacityError,
    ClosedError,
    InputError,
)
from mistral_portable.sampling import Sampled, sample_rows

__all__ = ["Steps", "Text"]

_Request = Request[Any]


class Text(NamedTuple):
    """Token ids, and the weights of adapters that they were read with."""

    tokens: Sequence[int]
    adapters: Sequence[float]


class Steps:
    """The requests of a Loop. `add` and `leave` are for any thread; all else for the one that runs steps."""

    def __init__(self, core: Core, *, lanes: int, drafting: Drafting | None) -> None:
        """Arguments: those of `Loop`."""
        self.foreign: set[_Request] = set()
        """Requests that other threads than the main one have submitted, but for those that stand still."""
        self.interrupted = False
        """Whether Ctrl-C, or a defect, has ended a call amid its work."""
        self.last_text = Text((), ())
        """Prompt and answer of the completion that ended last, of those without a `cache_salt`."""
        self._core = core
        self._drafting = drafting
        self._chooses, self._draws = isinstance(core.program, GreedyProgram), isinstance(core.program, DrawingProgram)
        self._scheduler: Scheduler[_Request] = Scheduler(core.manager.spec.max_chunk, CHUNK)
        self._arrived: deque[_Request] = deque()
        self._left: deque[_Request] = deque()
        self._stalled: set[_Request] = set()
        self._begun: deque[UnderWay] = deque()
        self._depth = core.depth
        self._flights: deque[Flight] = deque()
        self._landed = 0.0  # when the last one was over, by time.perf_counter
        self._lanes = RequestLanes(core.manager, self._scheduler, self._begun, lanes)

    def add(self, request: _Request) -> None:
        """Let a request take part from the next `settle` on."""
        request.submitted = time.perf_counter()
        self._arrived.append(request)

    def leave(self, request: _Request) -> None:
        """Let a request take no more part from the next `settle` on."""
        self._left.append(request)
        request.cancelled = True

    def keep_only(self, thread: int) -> None:
        """Let the requests of all other threads take no more part: a forked process has none of these threads."""
        for request in [*self._scheduler.requests, *self._arrived]:
            if request.thread != thread:
                request.listener = None
                self.leave(request)
        self._flights.clear()
        self.interrupted = True

    @property
    def arrived(self) -> bool:
        """Whether a request waits for `settle` to take it in."""
        return bool(self._arrived)

    @property
    def left(self) -> bool:
        """Whether a request waits for `settle` to clear it away."""
        return bool(self._left)

    @property
    def requests(self) -> list[_Request]:
        """All that have been taken in and not ended."""
        return self._scheduler.requests

    def settle(self) -> None:
        """Take in the requests that have come, clear away those that were left, and wake those that stood still."""
        if self.interrupted:
            self._mend()
        while self._arrived:  # Ctrl-C may come at any point: a request leaves the queue when it is taken in
            request = self._arrived[0]
            if not request.cancelled and request not in self._scheduler:
                if not request.by_main:
                    self.foreign.add(request)
                self._scheduler.add(
                    request,
                    len(request.tokens),
                    priority=request.priority,
                    user=request.user,
                    chunk=request.chunk,
                    caller=request.caller,
                )
            self._arrived.popleft()
        while self._left:
            self._end(self._left[0])
            self._left.popleft()
        if self._stalled:
            for request in [request for request in self._stalled if len(request.made) <= request.backlog // 2]:
                self._stall(request, False)

    def run(self) -> bool:
        """Run one step, for all requests that it has room for; False if there is none.

        Where the program has stages, as many steps as keep them busy have begun, and this waits for the first of them.
        """
        begin = time.perf_counter()
        if not (self._begun or self._begin_steps(begin)):
            # Each lane that the loop holds is of a request that goes on or whose lane another one may take.
            refused, error = self._lanes.refusal()
            self.fail(refused, error)
            return bool(refused)
        if self._flights:
            self._land(self._flights[0])
        if len(self._begun) == 1:
            self._begin_following(self._begun[0])
        if self._begun:
            self._read_first(begin)
        return True

    def close(self, error: ClosedError | None = None) -> None:
        """End all requests with an error; None: the core is closed."""
        self.settle()
        self._begun.clear()
        self._flights.clear()
        self.fail(self._scheduler.requests, error or ClosedError("the model is closed: load it again"))

    def fail(self, requests: Iterable[_Request], error: Exception) -> None:
        """End requests with an error."""
        for number, request in enumerate(list(requests)):
            request.error = copy.copy(error) if number else error  # each thread raises its own
            request.finished = True
            self._tell(request)

    def _next_turn(self) -> Turn[_Request]:
        under_way = [flight.turn for flight in self._flights]
        if self._scheduler.asked:
            self._scheduler.admit(self._lanes, under_way)
        return self._scheduler.next(under_way, self._depth)

    def _begin_steps(self, begin: float) -> bool:
        """Begin steps until the program is busy; False if there is nothing to do, and nothing under way."""
        while len(self._flights) < self._depth and not self._begun:
            turn = self._next_turn()
            if not turn.requests:
                return bool(self._flights)
            try:
                self._begin(turn, begin)
            except Exception as error:
                self._land_all()
                self._step_failed(self._still_there(turn).requests, error)
                break
        return True

    def _begin(self, turn: Turn[_Request], begin: float) -> None:
        """Begin a step: one whose tokens the device chooses, if that is all that is asked for."""
        drafts = {} if self._drafting is None else self._drafting.choose(turn)
        chosen = time.perf_counter()
        chunks = self._chunks(turn, drafts)
        if drafts or not self._submit(turn, chunks):
            start = time.perf_counter()
            try:
                outputs = self._core.begin(chunks)
            except CapacityError:
                if not drafts or self._drafting is None:
                    raise
                self._drafting.pause()  # they are to save time, and not to cost anybody the lane
                self._begin(turn, time.perf_counter())
                return
            self._flights.append(Flight(turn, chunks, drafts, outputs, begin, chosen, start))

    def _land(self, flight: Flight) -> None:
        """Wait for a step, the first of those that have begun, and hand out what it made."""
        try:
            outputs = flight.outputs()
        except Exception as error:
            self._flights.popleft()
            self._flight_failed(flight, error)
            return
        self._flights.popleft()
        # Of steps that follow each other closely, each takes as long as the slowest stage.
        begun, self._landed = self._landed, time.perf_counter()
        turn, waited = self._still_there(flight.turn), max(0.0, begun - flight.start)
        self._took_place(turn)
        self._hand_out(flight, outputs)
        if self._drafting is not None:
            tokens = sum(len(chunk.tokens) for chunk in flight.chunks)
            self._drafting.observe(turn, tokens, self._landed - flight.start - waited)
        if not flight.drafts:
            self._scheduler.observe(turn, time.perf_counter() - flight.chosen - waited)

    def _still_there(self, turn: Turn[_Request]) -> Turn[_Request]:
        """The turn without requests that have been left while the step was under way."""
        if all(request in self._scheduler for request in turn.requests):
            return turn
        reading = tuple((request, count) for request, count in turn.reading if request in self._scheduler)
        return Turn(tuple(request for request in turn.decoding if request in self._scheduler), reading)

    def _flight_failed(self, flight: Flight, error: Exception) -> None:
        """Let a step that has failed be tried without drafts, or go on as after any other that fails."""
        if flight.drafts and self._drafting is not None and isinstance(error, CapacityError):
            self._drafting.pause()
            return
        self._land_all()
        self._step_failed(self._still_there(flight.turn).requests, error)

    def _land_all(self) -> None:
        """Wait for all steps: what is under way has lanes, one of which may have to give way."""
        while self._flights:
            self._land(self._flights[0])

    def _chunks(self, turn: Turn[_Request], drafts: Mapping[_Request, Sequence[int]]) -> list[Chunk]:
        if not drafts:
            return [self._chunk(request, count) for request, count in zip(turn.requests, turn.counts, strict=True)]
        chunks = list[Chunk]()
        for request, count in zip(turn.requests, turn.counts, strict=True):
            chunk, draft = self._chunk(request, count), drafts.get(request, ())
            tokens = [*chunk.tokens, *draft]
            chunks.append(chunk._replace(tokens=tokens, rows=range(count - 1, len(tokens))) if draft else chunk)
        return chunks

    def _begin_following(self, before: UnderWay) -> None:
        """Begin the step that follows the one under way, whose tokens stay on the device, if it chooses all again.

        Whoever ends by a token that is read later takes part in vain.
        """
        if self._drafting is not None and any(completion.drafts for completion in before.rows):
            return  # what it makes tells what to try
        turn = self._next_turn()
        ending = {completion for completion in before.rows if completion.left == 1}
        if ending:
            turn = Turn(tuple(request for request in turn.decoding if request not in ending), turn.reading)
        rows = dict[_Request, int](before.rows.items())
        chunks = [
            self._chunk(request, count, rows.get(request))
            for request, count in zip(turn.requests, turn.counts, strict=True)
        ]
        with suppress(Exception):  # no memory for more, say: the next step tells, when this one is read
            self._submit(turn, chunks, before.step)

    def _submit(self, turn: Turn[_Request], chunks: Sequence[Chunk], after: Step | None = None) -> bool:
        """Begin a step whose tokens the device chooses; False if there are none, or others."""
        asking = [request for request, chunk in zip(turn.requests, chunks, strict=True) if chunk.rows]
        completions = [request for request in asking if isinstance(request, Completion)]
        if not asking or len(completions) < len(asking):
            return False
        drawn: DrawnStep | None = None
        if self._chooses and all(completion.greedy for completion in completions):
            step = self._core.submit(chunks, after)
        elif self._draws and all(completion.greedy or completion.drawn for completion in completions):
            unread = [sum(completion in begun.rows for begun in self._begun) for completion in completions]
            draws = draws_of([completion.sampler for completion in completions], unread)
            step = drawn = self._core.draw(chunks, draws, after)
        else:
            return False
        rows = {completion: row for row, completion in enumerate(completions)}
        self._begun.append(UnderWay(step, drawn, turn, rows, after is not None))
        self._took_place(turn)
        return True

    def _chunk(self, request: _Request, count: int, row: int | None = None) -> Chunk:
        """The request's next tokens. row: of the step under way, which chooses the newest one; None: it is known."""
        lane, fed = request.lane, request.fed
        assert lane is not None
        # A step was in vain, or Ctrl-C came between it and the note that it had taken place.
        if self._core.manager.length(lane) != fed:
            self._core.manager.rollback(lane, fed)
        embeds = None if request.embeds is None else request.embeds[fed : fed + count]
        tokens = request.tokens[fed : fed + count] if row is None else [0]
        return Chunk(lane, tokens, request.rows(count), embeds, row, request.adapters)

    def _took_place(self, turn: Turn[_Request]) -> None:
        for request, count in zip(turn.requests, turn.counts, strict=True):
            request.fed += count
            self._lanes.make_known(request)
        self._scheduler.took_place(turn)

    def _hand_out(self, flight: Flight, outputs: Mapping[str, NDArray[np.float32]]) -> None:
        """Give each request what its rows of a step's outputs are for."""
        places: dict[Completion, int] = {}
        start, begin, drafts = 0, flight.begin, flight.drafts
        for request, chunk in zip(flight.turn.requests, flight.chunks, strict=True):
            count = len(chunk.rows)
            if request not in self._scheduler:  # it was left while the step was under way
                pass
            elif isinstance(request, Scoring):
                made = outputs[request.output][start : start + count]
                request.take(made.astype(np.float32, copy=False))  # float64 programs return float64
                self._tell(request)
            elif count:
                places[cast(Completion, request)] = start
            start += count
        if places:
            logits = outputs["logits"].astype(np.float32, copy=False)
            for completion, count in self._sample(places, drafts, logits, begin).items():
                self._note_time(completion, begin)
                self._go_on(completion, len(drafts.get(completion, ())), count)

    def _sample(
        self,
        places: Mapping[Completion, int],
        drafts: Mapping[_Request, Sequence[int]],
        logits: NDArray[np.float32],
        begin: float,
    ) -> dict[Completion, int]:
        """Append to answers what the sampler chooses, and as long as that is what was drafted, from the next row, too.

        places: the first row of each answer. Returns how many drafted tokens were right of each answer that has not
        failed.
        """
        right = dict.fromkeys(places, 0)
        going = list(places)
        while going:
            rows = [places[completion] + right[completion] for completion in going]
            some = logits if len(rows) == len(logits) else logits[rows]
            going, sampling = [], zip(going, sample_rows([c.sampler for c in going], some), strict=True)
            for completion, sampled in sampling:
                made = self._take(completion, sampled, begin)
                if not made:
                    del right[completion]
                    continue
                draft = drafts.get(completion, ())[right[completion] :]
                found = common_length(draft, made)
                right[completion] += found
                if found == len(made) and not completion.finished:
                    going.append(completion)
        return right

    def _take(self, completion: Completion, sampled: Sampled | Exception, begin: float) -> list[int]:
        """Append a token to an answer, and those that its grammar forces; return them, [] if the answer fails."""
        if isinstance(sampled, Sampled):
            try:
                return completion.tokens[-completion.take(sampled) :]
            except InputError as error:
                sampled = error
        self._note_time(completion, begin)
        self.fail([completion], sampled)
        return []

    def _go_on(self, completion: Completion, drafted: int, right: int) -> None:
        """Keep what was right of a draft in the cache, have the next step read what is new, and tell."""
        if drafted:
            accepted = min(right, len(completion.tokens) - 1 - completion.fed)
            completion.drafted += drafted
            completion.accepted += accepted
            completion.fed += accepted
            self._scheduler.advance(completion, accepted)
            if accepted < drafted:
                assert completion.lane is not None
                self._core.manager.rollback(completion.lane, completion.fed)
        unread = len(completion.tokens) - completion.fed
        if unread > 1 and not completion.finished:
            self._scheduler.read_more(completion, unread)
        self._tell(completion)

    def _read_first(self, begin: float) -> None:
        """Wait for the older one of the begun steps, and hand its tokens out."""
        first = self._begun[0]
        try:
            tokens = first.step.tokens().tolist()
        except Exception as error:
            begun = {request: None for under_way in self._begun for request in under_way.turn.requests}
            self._begun.clear()
            self.fail([request for request in begun if request in self._scheduler], error)
            return
        self._begun.popleft()
        seconds = time.perf_counter() - begin
        self._scheduler.observe(first.turn, seconds)
        if self._drafting is not None and not first.follows:
            self._drafting.observe(first.turn, sum(first.turn.counts), seconds)
        for completion, row in first.rows.items():
            if completion not in self._scheduler:  # it ended while the step ran
                continue
            made = self._take(completion, first.choose(completion, tokens[row]), begin)
            if made and tokens[row] < 0:
                self._read_again(completion)
            if made:
                self._note_time(completion, begin)
                self._tell(completion)

    def _read_again(self, completion: Completion) -> None:
        """Let the steps that have begun not count for a completion whose newest token they did not have."""
        for number, begun in enumerate(self._begun):
            if completion in begun.rows:
                self._begun[number] = begun.without(completion)
                completion.fed -= 1
                self._scheduler.advance(completion, -1)

    def _note_time(self, completion: Completion, begin: float) -> None:
        """Note how long an answer has waited for a step. begin: of the step, by time.perf_counter."""
        now = time.perf_counter()
        if completion.prefill_s:
            completion.decode_s += now - begin
        else:
            completion.prefill_s = now - completion.submitted

    def _tell(self, request: _Request) -> None:
        """Note that something was made for a request."""
        if request.finished:
            self._end(request)
        elif len(request.made) >= request.backlog:
            self._stall(request, True)
        if request.listener is not None:
            try:
                request.listener()
            except RuntimeError:  # the event loop of its coroutine is closed
                self._left.append(request)

    def _stall(self, request: _Request, stalled: bool) -> None:
        self._scheduler.stall(request, stalled)
        (self._stalled.add if stalled else self._stalled.discard)(request)
        if not request.by_main:
            (self.foreign.discard if stalled else self.foreign.add)(request)

    def _mend(self) -> None:
        """End requests that an interruption has torn, close lanes that it has lost, and see who stands still."""
        for request in self._scheduler.requests:
            if request.finished:
                self._end(request)
        torn = [request for request in self._scheduler.requests if self._is_torn(request)]
        self.fail(torn, BusyError("Ctrl-C came amid a step of this text: ask for it again"))
        self._lanes.close_lost()
        requests = self._scheduler.requests
        self._stalled = {request for request in requests if self._scheduler.is_stalled(request)}
        self.foreign = {request for request in requests if not (request.by_main or request in self._stalled)}
        self.interrupted = False

    def _is_torn(self, request: _Request) -> bool:
        under_way = sum(request in begun.rows for begun in self._begun)
        agrees = self._scheduler.agrees(request, request.fed, request.lane is not None)
        return not agrees or request.lacks(under_way)

    def _step_failed(self, requests: Sequence[_Request], error: Exception) -> None:
        """Go on without the requests of a step that has failed; if memory was short, with fewer of them at a time."""
        if isinstance(error, ClosedError):
            self.close(error)
        elif not (isinstance(error, CapacityError) and self._lanes.give_way()):
            self.fail(requests, error)

    def _end(self, request: _Request) -> None:
        self._stalled.discard(request)
        self.foreign.discard(request)
        if self._drafting is not None and isinstance(request, Completion):
            self._drafting.forget(request)
        if request in self._scheduler:
            if request.keeps and request.fed and request.error is None and not request.cache_salt:
                taken = len(request.tokens) - (len(request.made) if request.cancelled else 0)
                self.last_text = Text(request.tokens[:taken], request.adapters)
            self._lanes.end(request)
            self._scheduler.remove(request)  # last: until then, Ctrl-C can be followed by another try
            if self._begun and not any(completion in self._scheduler for completion in self._begun[0].rows):
                self._begun.popleft()  # it was begun in vain
