"""ProcessStage: a Part in a process of its own on this machine."""

import multiprocessing
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import FrameType
from typing import Any, NoReturn

from mistral_portable.boundary.process import OwnProcess
from mistral_portable.errors import BackendError, ClosedError
from mistral_portable.staging.part import Made, Part

__all__ = ["ProcessStage"]

_PATIENCE_S = 5.0  # for a process that was told to end

_Call = tuple["Future[Any]", str, tuple[Any, ...]]


class ProcessStage:
    """A process that is started at once, and a thread here that sends it one call after another.

    The process ends with this one, however that ends: its pipe is closed then. It ignores Ctrl-C, which reaches all
    processes of a terminal: this one decides. It is spawned, as CUDA and threads do not survive a fork; so scripts need
    `if __name__ == "__main__":` around what loads a model.
    """

    def __init__(self, name: str, make: Callable[[], Made]) -> None:
        """name: for errors, such as "stage 1 of 2". make: that of Part, picklable."""
        self._name = name
        self._own = OwnProcess("a model in stages")
        self._closed, self._closing = False, threading.Lock()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make), name=name, daemon=True)
        with _interrupts_blocked():
            self._process.start()
        theirs.close()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        threading.Thread(target=self._run, name=f"mistral_portable {name}", daemon=True).start()

    @property
    def pid(self) -> int | None:
        """The id of the process."""
        return self._process.pid

    def submit(self, method: str, *arguments: Any) -> "Future[Any]":
        """Let the part's method be called. Raises BackendError in a forked child, ClosedError after `close`; further:
        see Stage."""
        self._own.require()
        future: Future[Any] = Future()
        with self._closing:
            if self._closed:
                raise ClosedError(self._end())
            self._calls.put((future, method, arguments))
        return future

    def close(self) -> None:
        """End the process; it has nothing that must be saved."""
        if self._own.forked:
            return
        with self._closing:
            self._closed = True
            self._calls.put(None)
        self._process.terminate()
        self._process.join(_PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(_PATIENCE_S)

    def _run(self) -> None:
        """Send calls until the stage is closed."""
        while (call := self._calls.get()) is not None:
            future, method, arguments = call
            try:
                future.set_result(self._call(method, arguments))
            except BaseException as error:
                future.set_exception(error)
        with suppress(OSError):
            self._pipe.close()

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        ready = [argument.result() if isinstance(argument, Future) else argument for argument in arguments]
        try:
            self._pipe.send((method, ready))
            error, result = self._pipe.recv()
        except (EOFError, OSError):
            raise ClosedError(self._end()) from None
        if error is not None:
            raise error
        return result

    def _end(self) -> str:
        """Describe why there is no process any more."""
        if self._closed:
            return "the model is closed: load it again"
        self._process.join(_PATIENCE_S)
        return (
            f"{self._name} has ended (process {self.pid}, exit code {self._process.exitcode}), and with it its layers' "
            "cache: load the model again"
        )


def _serve(pipe: Connection, make: Callable[[], Made]) -> None:
    """Run a Part in this process until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)  # amid the compiling of kernels: its folder and processes end with it
    part = Part(make)
    with suppress(EOFError, OSError):
        while True:
            method, arguments = pipe.recv()
            try:
                answer: tuple[Exception | None, Any] = None, getattr(part, method)(*arguments)
            except Exception as error:
                answer = _picklable(error), None
            pipe.send(answer)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once, also amid a step


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one would end the first one's cleaning
    sys.exit(128 + number)


def _picklable(error: Exception) -> Exception:
    """The error, with the traceback of this process as a note; a BackendError in place of one that cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = BackendError(f"{type(error).__name__}: {error}")
    error.add_note("".join(traceback.format_exception(error)))
    return error


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Let processes that are started in the block inherit that Ctrl-C is blocked: they ignore it from the first moment.

    Windows cannot: there, one that is still starting may print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
