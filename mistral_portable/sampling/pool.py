"""Pool: a few threads that share a list of tasks with the thread that asks for it."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Lock

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

    def __init__(self, most: int) -> None:
        """Keep up to `most` threads beside the caller's."""
        self._most = most
        make_locks(self, Pool._begin)

    def run(self, task: Callable[[int], object], count: int, *, threads: int) -> None:
        """Call task(0), ..., task(count - 1), each once, on up to `threads` threads, the caller's among them.

        Each thread takes the next number as soon as it is free; no more than `most` + 1 threads take part. Returns when
        all calls have ended. Raises what a task raised, and begins no other then.
        """
        numbers = deque(range(count))

        def work() -> None:
            try:
                while True:
                    try:
                        number = numbers.popleft()
                    except IndexError:
                        return
                    task(number)
            finally:
                numbers.clear()

        helpers = min(threads, count, self._most + 1) - 1
        futures = [self._executor().submit(work) for _ in range(helpers)]
        try:
            work()
        finally:
            wait([future for future in futures if not future.cancel()])
        for future in futures:
            if not future.cancelled():
                future.result()

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._most, "mistral_portable_sampling")
            return self._threads

    def _begin(self) -> None:
        self._lock = Lock()
        self._threads: ThreadPoolExecutor | None = None
