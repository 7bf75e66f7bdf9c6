"""Pool: a few threads that share a list of tasks with the thread that asks for it."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue

from mistral_portable.forks import make_locks

__all__ = ["Pool", "usable_cpus"]


def usable_cpus() -> int:
    """Count the CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Starts its threads when they are first needed, and anew in a forked child, where the parent's do not exist.

    >>> done = []
    >>> Pool(4).run(done.append, 3, threads=2)
    >>> sorted(done)
    [0, 1, 2]
    """

    _threads: ThreadPoolExecutor | None

    def __init__(self, most: int) -> None:
        """Keep up to `most` threads beside the caller's."""
        self._most = most
        make_locks(self, Pool._make_locks)

    def run(self, task: Callable[[int], object], count: int, *, threads: int) -> None:
        """Call task(0), ..., task(count - 1), each once, on up to `threads` threads, the caller's among them.

        Each thread takes the next number as soon as it is free; no more than `most` + 1 threads take part. Returns when
        all calls have ended. If a task raises, its thread begins no other; raised again when all threads have ended.
        """
        numbers: SimpleQueue[int] = SimpleQueue()
        for number in range(count):
            numbers.put(number)

        def work() -> None:
            while True:
                try:
                    number = numbers.get_nowait()
                except Empty:
                    return
                task(number)

        futures: list[Future[None]] = []
        try:
            for _ in range(min(threads, count, self._most + 1) - 1):
                futures += self._begin(work)
            work()
        finally:
            wait([future for future in futures if not future.cancel()])
        for future in futures:
            if not future.cancelled():
                future.result()

    def _begin(self, work: Callable[[], None]) -> list[Future[None]]:
        """Begin work() in a thread; do nothing where the main thread has ended, after which Python starts no thread."""
        with self._lock:
            self._threads = self._threads or ThreadPoolExecutor(self._most, "mistral_portable_sampling")
        try:
            return [self._threads.submit(work)]
        except RuntimeError:
            if threading.main_thread().is_alive():
                raise
            return []

    def _make_locks(self) -> None:
        self._lock = threading.Lock()
        self._threads = None
