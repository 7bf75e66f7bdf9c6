"""Queue: how many answers may run and wait together. The engine's loop does the waiting; here they are counted."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mistral_portable.errors import BusyError, InputError

__all__ = ["Queue", "QueueFull"]

_LONGEST_WAIT = 60  # seconds that a client is told to wait


class QueueFull(BusyError):
    """Too many answers wait. retry_after: seconds after which there is likely to be room."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Queue:
    """Counts answers that run or wait; used by one event loop only.

    `open` (answers let in and not ended), `lanes` (answers that run at a time) and `limit` (of both together) are for
    reading.
    """

    def __init__(self, *, lanes: int, waiting: int) -> None:
        """waiting: the most answers that wait for one of `lanes` lanes."""
        self.open = 0
        self.lanes = lanes
        self.limit = lanes + waiting
        self._seconds = 1.0  # that an answer takes, waiting included: a moving average

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Let `count` answers of one request in for the duration of a `with` block.

        Raises QueueFull if they find no room now, InputError if they never will.
        """
        if count > self.limit:
            raise InputError(f"n: {count} answers in one request, the server takes at most {self.limit}: ask for fewer")
        self.check(count)
        self.open += count
        begin = time.monotonic()
        try:
            yield
        finally:
            self.open -= count
            self._seconds += 0.1 * (time.monotonic() - begin - self._seconds)

    def check(self, count: int = 1) -> None:
        """Raise QueueFull if there is no room for `count` answers now."""
        if self.open + count > self.limit:
            waiting = max(0, self.open - self.lanes)
            wait = min(_LONGEST_WAIT, max(1, math.ceil(self._seconds / 2)))
            raise QueueFull(f"the server is busy: {waiting} answers wait already; try again in {wait} s", wait)
