"""Loop: the threads that wait for requests, of which one runs the steps for all."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from mistral_portable.engine.bell import Bell
from mistral_portable.engine.caller import Caller
from mistral_portable.engine.core import Core
from mistral_portable.engine.drafting import Drafting
from mistral_portable.engine.request import Request
from mistral_portable.engine.steps import Steps, Text
from mistral_portable.engine.task import Task
from mistral_portable.errors import InputError
from mistral_portable.forks import make_locks

__all__ = ["Loop"]

AnyRequest = TypeVar("AnyRequest", bound=Request[Any])
Result = TypeVar("Result")
_Request = Request[Any]

_LINGER = 0.05  # seconds that the thread for others stays when nobody needs it: to start one takes longer than a step


class Loop:
    """Reads and continues the sequences of any number of threads together.

    It has no thread of its own: of the callers that wait for something, one runs the steps, for all; whoever has what
    it waits for leaves, and another one goes on. So a single caller pays for no change of threads, and nothing runs
    that nobody waits for. A request from which nobody takes stands still after `Request.backlog` things.

    Coroutines must not wait in their thread: for them a thread is started, which ends when none of theirs is left. The
    main thread, too, leaves steps to others where they are not for requests of its own alone: Ctrl-C, which may come in
    the middle of a step, comes there. What it tears is mended: only texts of the main thread may end by it.
    """

    def __init__(self, core: Core, *, lanes: int | None = None, drafting: Drafting | None = None) -> None:
        """lanes: the most that its requests hold together; None: all that nobody else holds. drafting: what steps try;
        None: nothing."""
        lanes = lanes or core.manager.spec.max_lanes
        self._core = core
        self._steps = Steps(core, lanes=lanes, drafting=drafting)
        self._tasks: deque[Task[Any]] = deque()
        self._bells: WeakKeyDictionary[asyncio.AbstractEventLoop, Bell] = WeakKeyDictionary()
        self._together = 4 * lanes  # requests of one caller: enough to choose from, and no longer lists
        make_locks(self, Loop._make_locks)

    def _make_locks(self) -> None:
        # Reentrant: the garbage collector may drop a request in the thread that holds it.
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._driver: int | None = None  # the thread that runs steps, or calls Steps while it holds the lock
        self._main_waits = False
        self._called = False  # whether the server is to run steps
        self._waiting = 0
        self._server: threading.Thread | None = None
        self._tasks.clear()
        self._steps.keep_only(threading.get_ident())

    @property
    def last_text(self) -> Text:
        """Prompt and answer of the completion that ended last, of those without a `cache_salt`."""
        return self._steps.last_text

    def run(self, requests: Iterable[AnyRequest]) -> Generator[AnyRequest, None, None]:
        """Run requests together, from the first `next` on; yield one whenever its consumer has something to take.

        The caller calls the request's `next` once each time; it raises the request's error: those of `Core.step` and
        `Sampler.sample`, or BusyError if every lane is held outside of the loop. Ends when all have; a request may be
        left before. Of many requests, those that come first begin first. Closing or dropping the generator ends all.
        """
        caller = Caller(self._submit, requests, most=self._together)
        try:
            while caller.left():
                self._wait(caller.requests)
                yield from caller.ready()
        finally:
            self._leave_all(caller)

    async def arun(self, requests: Iterable[AnyRequest]) -> AsyncGenerator[AnyRequest, None]:
        """`run` for coroutines."""
        bell, news = self._bell(), asyncio.Event()
        caller = Caller(self._submit, requests, most=self._together, listener=lambda: bell.ring(news))
        try:
            while caller.left():
                news.clear()
                if not _any_ready(caller.requests):
                    with self._lock:
                        self._serve()
                    await news.wait()
                for request in caller.ready():
                    yield request
        finally:
            self._leave_all(caller)

    def leave(self, request: _Request) -> None:
        """End a request. Its lane is free at once, or after the step that some thread runs now."""
        if request.cancelled:
            return
        self._steps.leave(request)
        with self._lock:
            if self._driver is None:
                self._rest()

    def between_steps(self, action: Callable[[], Result]) -> Result:
        """Call a function that takes lanes and gives them back, and return its result or raise its error.

        No step runs and no request takes a lane meanwhile: none finds that others have them all.
        """
        task = Task(action)
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
            if self._driver is None:  # else the thread that runs steps finds out
                with self._alone():
                    self._steps.close()
                self._rest()
                self._condition.notify_all()

    def _submit(self, request: _Request) -> None:
        request.by_main = threading.current_thread() is threading.main_thread()
        request.thread = threading.get_ident()
        self._steps.add(request)

    def _bell(self) -> Bell:
        """The bell of the event loop that runs here."""
        own = asyncio.get_running_loop()
        with self._lock:
            return self._bells.setdefault(own, Bell(own))

    def _leave_all(self, caller: Caller[AnyRequest]) -> None:
        for request in caller.requests:
            self.leave(request)

    def _wait(self, requests: "Sequence[_Request | Task[Any]]") -> None:
        """Return when one of the requests is ready: run steps until then, or let another thread do so.

        Raises InputError within a step of this thread, which would wait for itself.
        """
        if self._driver == threading.get_ident():
            raise InputError("the model was asked amid its own step: logits_processors must not call it")
        try:
            while not self._take_part(requests):
                pass
        except BaseException:  # Ctrl-C
            with self._lock:
                self._steps.interrupted = True
                if self._driver == threading.get_ident():
                    self._driver = None
                self._condition.notify_all()
            raise

    def _take_part(self, requests: "Sequence[_Request | Task[Any]]") -> bool:
        """Run steps, or sleep while another thread does; whether one of the requests is ready."""
        with self._lock:
            while not _any_ready(requests):
                if self._driver is None and self._may_run():
                    self._driver = threading.get_ident()
                    break
                self._sleep_meanwhile()
            else:
                return True
        try:
            return self._run_until(requests)
        finally:
            self._give_over()

    def _run_until(self, requests: "Sequence[_Request | Task[Any]]") -> bool:
        """Run steps until one of the requests is ready; False if this thread may run no more before."""
        while True:
            self._steps.settle()
            if not self._may_run():
                return False
            self._step()
            if _any_ready(requests):
                return True
            if self._waiting:
                with self._lock:
                    self._condition.notify_all()

    def _may_run(self) -> bool:
        """Whether this thread may run steps and tasks: the main one only its own."""
        if not (self._steps.foreign or self._tasks) or threading.current_thread() is not threading.main_thread():
            return True
        return not self._steps.foreign and all(task.by_main for task in self._tasks)

    def _sleep_meanwhile(self) -> None:
        """Sleep until others have run steps; if only the main thread waits, start a thread that does."""
        if self._driver is not None:
            self._sleep()
            return
        self._main_waits = True
        try:
            self._serve()
            self._sleep()
        finally:
            self._main_waits = False

    def _step(self) -> bool:
        """Run one step, or what is to be done between two; False if there is nothing to do."""
        if not self._tasks:
            return self._steps.run()
        while self._tasks:
            task = self._tasks.popleft()
            try:
                task.run()
            except BaseException:  # Ctrl-C in this thread is not the task's error
                self._tasks.appendleft(task)
                raise
        return True

    def _serve(self) -> None:
        """Let a thread run steps for those that do not; the lock is held."""
        self._called = True
        if self._server is None:
            server = threading.Thread(target=self._run_server, name="mistral_portable.Loop", daemon=True)
            server.start()
            self._server = server
        else:
            self._condition.notify_all()

    def _run_server(self) -> None:
        while True:
            with self._lock:
                while self._driver is not None:
                    self._sleep()
                self._driver, self._called = threading.get_ident(), False
            try:
                self._steps.settle()
                ran = self._step()
            except Exception as error:  # a defect: no coroutine shall wait for ever
                ran, self._steps.interrupted = True, True
                self._steps.fail(self._steps.requests, error)
            finally:
                self._give_over()
            with self._lock:
                if self._is_needed():
                    if not (ran or self._called):
                        self._sleep()  # all stand still
                    continue
                self._sleep(_LINGER)
                if not self._is_needed():
                    self._server = None
                    return

    def _is_needed(self) -> bool:
        """Whether a thread waits that does not run steps, or a coroutine."""
        return self._called or self._main_waits or any(request.listener for request in self._steps.requests)

    def _sleep(self, unneeded: float | None = None) -> None:
        """Wait until others have run a step; or, as the server, so many seconds until it is needed."""
        self._waiting += 1
        try:
            if unneeded is None:
                self._condition.wait()
            else:
                self._condition.wait_for(self._is_needed, unneeded)
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
        self._driver = None
        while self._steps.left:
            with self._alone():
                self._steps.settle()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the one that uses Steps, while nobody runs steps and the lock is held."""
        self._driver = threading.get_ident()
        try:
            yield
        except BaseException:
            self._steps.interrupted = True
            raise
        finally:
            self._driver = None


def _any_ready(requests: "Iterable[_Request | Task[Any]]") -> bool:
    """Whether there is something to take from one of the requests, or nothing more to wait for."""
    for request in requests:  # noqa: SIM110  # any() would take longer, and this is asked for every token
        if request.made or request.finished or request.cancelled:
            return True
    return False
