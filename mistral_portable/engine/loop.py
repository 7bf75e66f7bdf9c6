"""Loop: runs the requests of all callers in shared steps, one step at a time."""

import asyncio
import copy
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import GreedyProgram, Step
from mistral_portable.cache import Chunk, common_length
from mistral_portable.engine.core import Core
from mistral_portable.engine.request import Completion, Request, Scoring
from mistral_portable.engine.scheduler import Scheduler, Turn
from mistral_portable.errors import BusyError, CapacityError, ClosedError, NumericsError
from mistral_portable.forks import make_locks
from mistral_portable.sampling import Sampled, sample_rows

__all__ = ["Loop"]

AnyRequest = TypeVar("AnyRequest", bound=Request[Any])
Result = TypeVar("Result")
_Request = Request[Any]

_WORTH_WAITING = 32  # tokens in common with a prompt that is being read


@dataclass(frozen=True)
class _UnderWay:
    """A greedy step whose tokens have not been read: one for each of the completions, which are part of the turn."""

    step: Step
    turn: Turn[_Request]
    completions: Sequence[Completion]


class Loop:
    """Reads and continues the sequences of any number of threads together.

    It has no thread of its own: of the callers that wait for something, one runs the steps, for all; whoever has what
    it waits for leaves, and another one goes on. So a single caller pays for no change of threads, and nothing runs
    that nobody waits for. A request from which nobody takes stands still after `Request.backlog` things.

    Coroutines must not wait in their thread: for them a thread is started, which ends when none of theirs is left.
    """

    def __init__(self, core: Core, *, lanes: int | None = None, lockstep: bool = False) -> None:
        """lanes: the most that its requests hold together; None: all that nobody else holds. lockstep: whether other
        processes make the same calls and must make the same steps."""
        self._core = core
        self._on_device = isinstance(core.program, GreedyProgram)
        self._scheduler: Scheduler[_Request] = Scheduler(core.manager.spec.max_chunk, learns=not lockstep)
        self._arrived: deque[_Request] = deque()
        self._left: deque[_Request] = deque()
        self._tasks: deque[_Task[Any]] = deque()
        self.last_text: Sequence[int] = ()
        """Prompt and answer of the completion that ended last, of those without a `cache_salt`."""
        self._stalled: set[_Request] = set()
        self._begun: deque[_UnderWay] = deque()
        self._lanes = lanes or core.manager.spec.max_lanes
        self._most = self._lanes  # requests with a lane; fewer where memory was short
        group = core.manager.spec.groups[0]
        self._page = core.max_context + 1 if group.ring else group.page_size  # a lane in one piece is never full
        self._compared: dict[_Request, weakref.WeakKeyDictionary[_Request, int]] = {}  # for those that wait
        self._too_large: tuple[list[_Request], CapacityError] | None = None  # who asked last found no room
        self._together = 4 * self._most  # requests of one caller: enough to choose from, and no longer lists
        make_locks(self, Loop._make_locks)

    def _make_locks(self) -> None:
        # Reentrant: the garbage collector may drop a request in the thread that holds it.
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._driven = False  # whether a thread runs steps: it alone touches the scheduler, lanes and begun steps
        self._waiting = 0
        self._server: threading.Thread | None = None

    def run(self, requests: Iterable[AnyRequest]) -> Generator[AnyRequest, None, None]:
        """Run requests together, from the first `next` on; yield one whenever its consumer has something to take.

        The caller calls the request's `next` once each time; it raises the request's error: those of `Core.step` and
        `Sampler.sample`, or BusyError if every lane is held outside of the loop. Ends when all have; a request may be
        left before. Of many requests, those that come first begin first. Closing or dropping the generator ends all.
        """
        begun = _Begun(self, requests, None, self._together)
        try:
            while begun.left():
                self._wait(begun.requests)
                yield from begun.ready()
        finally:
            begun.leave()

    async def arun(self, requests: Iterable[AnyRequest]) -> AsyncGenerator[AnyRequest, None]:
        """`run` for coroutines."""
        own, news = asyncio.get_running_loop(), asyncio.Event()
        begun = _Begun(self, requests, lambda: own.call_soon_threadsafe(news.set), self._together)
        try:
            while begun.left():
                news.clear()
                if not _any_ready(begun.requests):
                    self._serve()
                    await news.wait()
                for request in begun.ready():
                    yield request
        finally:
            begun.leave()

    def submit(self, request: _Request) -> None:
        """Let a request take part in later steps, until it is left. Use `run`, which waits and leaves."""
        request.submitted = time.perf_counter()
        self._arrived.append(request)

    def leave(self, request: _Request) -> None:
        """End a request. Its lane is free at once, or after the step that some thread runs now."""
        if request.cancelled:
            return
        request.cancelled = True
        self._left.append(request)
        with self._lock:
            if not self._driven:
                self._rest()

    def between_steps(self, action: Callable[[], Result]) -> Result:
        """Call a function that takes lanes and gives them back, and return its result or raise its error.

        No step runs and no request takes a lane meanwhile: none finds that others have them all.
        """
        task = _Task(action)
        self._tasks.append(task)
        try:
            self._wait([task])
        finally:
            if not task.finished:
                with suppress(ValueError):
                    self._tasks.remove(task)
        return task.result()

    def close(self) -> None:
        """Release the executor's threads and memory; every request ends with ClosedError."""
        self._core.close()
        with self._lock:
            if not self._driven:  # else the thread that runs steps finds out
                self._driven = True
                self._close_all()
                self._rest()
                self._condition.notify_all()

    # --- threads -----------------------------------------------------------------------------------------------------

    def _wait(self, requests: "Sequence[_Request | _Task[Any]]") -> None:
        """Return when one of the requests is ready: run steps until then, or let another thread do so."""
        with self._lock:
            while not _any_ready(requests):
                if not self._driven:
                    self._driven = True
                    break
                self._sleep()
            else:
                return
        try:
            while True:
                self._step()
                if _any_ready(requests):
                    break
                if self._waiting:
                    with self._lock:
                        self._condition.notify_all()
        finally:
            self._give_over()

    def _serve(self) -> None:
        """Let the thread for coroutines run steps, or go on with them."""
        with self._lock:
            if self._server is None:
                self._server = threading.Thread(target=self._run_server, name="mistral_portable.Loop", daemon=True)
                self._server.start()
            else:
                self._condition.notify_all()

    def _run_server(self) -> None:
        while True:
            with self._lock:
                while self._driven:
                    self._sleep()
                self._driven = True
            try:
                ran = self._step()
            except Exception as error:  # a defect: no coroutine shall wait for ever
                ran = True
                self._fail(self._scheduler.requests, error)
            finally:
                self._give_over()
            with self._lock:
                if self._driven or self._arrived:
                    continue
                if not any(request.listener for request in self._scheduler.requests):
                    self._server = None
                    return
                if not ran:
                    self._sleep()  # all stand still

    def _sleep(self) -> None:
        self._waiting += 1
        try:
            self._condition.wait()
        finally:
            self._waiting -= 1

    def _give_over(self) -> None:
        """Let another thread run steps."""
        with self._lock:
            self._rest()
            if self._waiting:
                self._condition.notify_all()

    def _rest(self) -> None:
        """Run no more steps in this thread, which holds the lock; requests that have been left are cleared away."""
        while True:
            self._driven = False
            if not self._left:
                return
            self._driven = True
            self._settle()

    # --- steps, in the thread that runs them -------------------------------------------------------------------------

    def _step(self) -> bool:
        """Run one step, for all requests that it has room for; False if there is none."""
        if self._arrived or self._left or self._stalled:
            self._settle()
        if self._tasks:
            self._run_tasks()
            return True
        begin = time.perf_counter()
        if not self._begun:
            turn = self._next_turn()
            if not turn.requests:
                # Each lane that the loop holds is of a request that goes on or whose lane another one may take.
                self._refuse()
                return False
            try:
                self._run(turn, begin)
            except Exception as error:
                self._step_failed(turn.requests, error)
        if len(self._begun) == 1:
            self._begin_following(self._begun[0])
        if self._begun:
            self._read_first(begin)
        return True

    def _next_turn(self) -> Turn[_Request]:
        if self._scheduler.asked:
            self._scheduler.admit(self)
        return self._scheduler.next()

    def _run_tasks(self) -> None:
        while self._tasks:
            task = self._tasks.popleft()
            try:
                task.run()
            except BaseException:  # Ctrl-C in this thread is not the task's error
                self._tasks.appendleft(task)
                raise

    def _settle(self) -> None:
        """Take in the requests that have come, clear away those that were left, and wake those that stood still."""
        while self._arrived:
            request = self._arrived.popleft()
            if not request.cancelled:
                self._scheduler.add(
                    request,
                    len(request.tokens),
                    priority=request.priority,
                    user=request.user,
                    chunk=request.chunk,
                    caller=request.caller,
                )
        while self._left:
            self._end(self._left.popleft())
        for request in [request for request in self._stalled if len(request.made) <= request.backlog // 2]:
            self._stalled.discard(request)
            self._scheduler.stall(request, False)

    def _refuse(self) -> None:
        """Fail those that wait, although the loop holds no lane: others have all, or one takes more than there is."""
        if self._too_large is not None:
            self._fail(*self._too_large)
        else:
            self._fail(self._scheduler.waiting, BusyError("every lane is held by others: close one or raise max_lanes"))

    # --- lanes, for the scheduler ------------------------------------------------------------------------------------

    def is_ready(self, request: _Request) -> bool:
        """Whether its tokens are known, and no other request reads some that this one begins with and could find."""
        if any(request in under_way.completions for under_way in self._begun):  # it was put aside meanwhile
            return False
        if not self._core.manager.keeps:
            return True
        for other in self._scheduler.held:
            alike, read = self._alike(request, other), other.fed - self._under_way(other)
            goes_on = other.priority >= request.priority and other not in self._stalled
            if alike >= _WORTH_WAITING and read < alike and goes_on:
                return False
        return True

    def begin(self, request: _Request) -> int | None:
        """Open a lane with what is known of a request's tokens; return their number, or None if there is no room."""
        self._too_large = None
        if len(self._scheduler.held) >= self._most:
            return None
        # A page that is not full is kept when somebody asks for it, and so is a lane in one piece.
        for other in self._scheduler.held:
            if self._alike(request, other) >= max(_WORTH_WAITING, other.kept + 1):
                self._keep(other, whole=True)
        try:
            request.lane, request.fed = self._core.manager.resume(
                request.tokens[: request.findable], salt=request.cache_salt, length=len(request.tokens)
            )
        except BusyError:
            return None
        except CapacityError as error:
            self._too_large = [request], error
            return None
        request.cached = request.fed if request.cached is None else request.cached
        self._compared.pop(request, None)
        return request.fed

    def put_aside(self, request: _Request) -> None:
        """Close the lane of a request that goes on later."""
        self._close_lane(request)

    def _alike(self, request: _Request, other: _Request) -> int:
        """The number of tokens that a request which waits has in common with another one, from the first on."""
        if request.cache_salt != other.cache_salt or not other.keeps:
            return 0
        known = self._compared.setdefault(request, weakref.WeakKeyDictionary())
        if other not in known:
            known[other] = common_length(request.tokens[: request.findable], other.tokens)
        return known[other]

    def _keep(self, request: _Request, *, whole: bool) -> None:
        """Let others find the request's tokens in the cache."""
        known = min(request.fed - self._under_way(request), len(request.tokens))
        if request.keeps and request.lane is not None:
            self._core.manager.keep(request.lane, request.tokens[:known], salt=request.cache_salt, whole=whole)
            request.kept = known if whole else known // self._page * self._page

    def _under_way(self, request: _Request) -> int:
        """Tokens of a request in steps that have begun: they may still fail."""
        return sum(
            count
            for begun in self._begun
            for other, count in zip(begun.turn.requests, begun.turn.counts, strict=True)
            if other is request
        )

    def _run(self, turn: Turn[_Request], begin: float) -> None:
        """Begin a step, and unless the device chooses all its tokens, wait for it and hand out what it made."""
        chunks = [self._chunk(request, count) for request, count in zip(turn.requests, turn.counts, strict=True)]
        if not self._submit(turn, chunks):
            logits = self._core.step(chunks)
            self._took_place(turn)
            self._hand_out(turn.requests, chunks, logits, begin)
            self._scheduler.observe(turn, time.perf_counter() - begin)

    def _begin_following(self, before: _UnderWay) -> None:
        """Begin the step that follows the one under way, whose tokens stay on the device, if it chooses all again.

        Whoever ends by a token that is read later takes part in vain.
        """
        turn = self._next_turn()
        ending = {completion for completion in before.completions if completion.last}
        if ending:
            turn = Turn(tuple(request for request in turn.decoding if request not in ending), turn.reading)
        rows: dict[_Request, int] = {completion: row for row, completion in enumerate(before.completions)}
        chunks = [
            self._chunk(request, count, rows.get(request))
            for request, count in zip(turn.requests, turn.counts, strict=True)
        ]
        with suppress(Exception):  # no memory for more, say: the next step tells, when this one is read
            self._submit(turn, chunks, before.step)

    def _submit(self, turn: Turn[_Request], chunks: Sequence[Chunk], after: Step | None = None) -> bool:
        """Begin a step whose tokens the device chooses; False if there are none, or others."""
        asking = [request for request, chunk in zip(turn.requests, chunks, strict=True) if chunk.rows]
        if not (self._on_device and asking and all(isinstance(some, Completion) and some.greedy for some in asking)):
            return False
        step = self._core.submit(chunks, after)
        self._begun.append(_UnderWay(step, turn, cast(list[Completion], asking)))
        self._took_place(turn)
        return True

    def _hand_out(
        self, requests: Sequence[_Request], chunks: Sequence[Chunk], logits: NDArray[np.float32], begin: float
    ) -> None:
        """Give each request what its rows of a step's logits are for. begin: of the step, by time.perf_counter."""
        completions: list[Completion] = []
        places: list[int] = []
        start = 0
        for request, chunk in zip(requests, chunks, strict=True):
            count = len(chunk.rows)
            if isinstance(request, Scoring):
                request.take(logits[start : start + count])
                self._tell(request)
            elif count:
                completions.append(cast(Completion, request))
                places.append(start)
            start += count
        if completions:
            rows = logits if len(places) == start else logits[places]
            for completion, sampled in zip(
                completions, sample_rows([c.sampler for c in completions], rows), strict=True
            ):
                if isinstance(sampled, Sampled):
                    self._give(completion, sampled, begin)
                else:
                    self._fail([completion], sampled)

    def _chunk(self, request: _Request, count: int, row: int | None = None) -> Chunk:
        """The request's next tokens. row: of the step under way, which chooses the newest one; None: it is known."""
        lane, fed = request.lane, request.fed
        assert lane is not None
        if self._core.manager.length(lane) != fed:  # Ctrl-C came between a step and the note that it had taken place
            self._core.manager.rollback(lane, fed)
        embeds = None if request.embeds is None else request.embeds[fed : fed + count]
        tokens = request.tokens[fed : fed + count] if row is None else [0]
        return Chunk(lane, tokens, request.rows(count), embeds, row)

    def _took_place(self, turn: Turn[_Request]) -> None:
        for request, count in zip(turn.requests, turn.counts, strict=True):
            request.fed += count
            if min(request.fed, len(request.tokens)) >= request.kept + self._page:
                self._keep(request, whole=False)
        self._scheduler.took_place(turn)

    def _read_first(self, begin: float) -> None:
        """Wait for the older one of the begun steps, and hand its tokens out."""
        first = self._begun[0]
        try:
            tokens = first.step.tokens().tolist()
        except Exception as error:
            begun = {request: None for under_way in self._begun for request in under_way.turn.requests}
            self._begun.clear()
            self._fail([request for request in begun if request in self._scheduler], error)
            return
        self._begun.popleft()
        self._scheduler.observe(first.turn, time.perf_counter() - begin)
        for completion, token in zip(first.completions, tokens, strict=True):
            if completion not in self._scheduler:  # it ended while the step ran
                continue
            if token < 0:
                self._fail([completion], NumericsError(_NOT_FINITE))
            else:
                self._give(completion, Sampled(token), begin)

    def _give(self, completion: Completion, sampled: Sampled, begin: float) -> None:
        """Append a token to an answer. begin: of the step, by time.perf_counter."""
        now = time.perf_counter()
        if completion.prefill_s:
            completion.decode_s += now - begin
        else:
            completion.prefill_s = now - completion.submitted
        completion.take(sampled)
        self._tell(completion)

    def _tell(self, request: _Request) -> None:
        """Note that something was made for a request."""
        if request.finished:
            self._end(request)
        elif len(request.made) >= request.backlog:
            self._stalled.add(request)
            self._scheduler.stall(request, True)
        if request.listener is not None:
            try:
                request.listener()
            except RuntimeError:  # the event loop of its coroutine is closed
                self._left.append(request)

    def _step_failed(self, requests: Sequence[_Request], error: Exception) -> None:
        """Go on without the requests of a step that has failed; if memory was short, with fewer of them at a time."""
        if isinstance(error, CapacityError) and self._core.manager.forget():
            return  # what was kept has given way
        if isinstance(error, CapacityError) and len(self._scheduler.held) > 1:
            self._close_lane(self._scheduler.shed())
            self._most = len(self._scheduler.held)
        elif isinstance(error, ClosedError):
            self._close_all()
        else:
            self._fail(requests, error)

    def _close_all(self) -> None:
        self._settle()
        self._begun.clear()
        self._fail(self._scheduler.requests, ClosedError("the model is closed: load it again"))

    def _fail(self, requests: Iterable[_Request], error: Exception) -> None:
        for number, request in enumerate(list(requests)):
            request.error = copy.copy(error) if number else error  # each thread raises its own
            request.finished = True
            self._tell(request)

    def _end(self, request: _Request) -> None:
        if request in self._scheduler:
            if request.keeps and request.fed and request.error is None and not request.cache_salt:
                self.last_text = request.tokens
            self._scheduler.remove(request)
            self._stalled.discard(request)
            self._compared.pop(request, None)
            self._close_lane(request)
            self._most = self._lanes
            if self._begun and not any(completion in self._scheduler for completion in self._begun[0].completions):
                self._begun.popleft()  # it was begun in vain

    def _close_lane(self, request: _Request) -> None:
        if request.lane is not None:
            if request.error is None:
                self._keep(request, whole=True)
            self._core.manager.close(request.lane)
        request.lane, request.fed, request.kept = None, 0, 0


class _Task(Generic[Result]):
    """A function that the thread which runs steps calls between two of them. For `_wait` it is ready when finished."""

    made: Sequence[object] = ()
    cancelled = False

    def __init__(self, action: Callable[[], Result]) -> None:
        self.finished = False
        self._action = action
        self._found: list[Result] = []
        self._error: Exception | None = None

    def run(self) -> None:
        """Call the function."""
        try:
            self._found.append(self._action())
        except Exception as error:
            self._error = error
        self.finished = True

    def result(self) -> Result:
        """Return what it returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._found[0]


class _Begun(Generic[AnyRequest]):
    """Requests of one caller, of which a few at a time take part in the loop."""

    def __init__(
        self, loop: Loop, requests: Iterable[AnyRequest], listener: Callable[[], object] | None, most: int
    ) -> None:
        self.requests: list[AnyRequest] = []
        self._loop = loop
        self._caller = object()  # not `self`: requests that are dropped are free at once
        self._coming = iter(requests)
        self._more = True  # of these
        self._listener = listener
        self._most = most

    def left(self) -> bool:
        """Whether there is something to wait for; further requests begin where others are over."""
        for request in self.requests:
            if request.over:
                self.requests = [request for request in self.requests if not request.over]
                break
        if len(self.requests) < self._most and self._more:
            for request in islice(self._coming, self._most - len(self.requests)):
                request.listener, request.caller = self._listener, self._caller
                self.requests.append(request)
                self._loop.submit(request)
            self._more = len(self.requests) == self._most
        return bool(self.requests)

    def ready(self) -> Iterator[AnyRequest]:
        """Those from which something can be taken now."""
        for request in self.requests:
            if not request.cancelled and (request.made or request.error is not None):
                yield request

    def leave(self) -> None:
        """End those that have begun."""
        for request in self.requests:
            self._loop.leave(request)


def _any_ready(requests: "Iterable[_Request | _Task[Any]]") -> bool:
    """Whether there is something to take from one of the requests, or nothing more to wait for."""
    for request in requests:  # noqa: SIM110  # any() would take longer, and this is asked for every token
        if request.made or request.finished or request.cancelled:
            return True
    return False


_NOT_FINITE = (
    "a logit is not finite: the weights are corrupt or the dtype overflowed; "
    "try float32, another backend, or `mistral-portable verify`"
)
