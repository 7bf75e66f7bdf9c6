"""Bell: wakes the coroutines of an event loop, once for all that a step has made for them."""

import asyncio
import weakref
from collections import deque

__all__ = ["Bell"]


class Bell:
    """Sets events of one event loop from any thread.

    To wake an event loop takes a system call, and it then takes the interpreter from the thread that runs the steps,
    which still hands out what the step has made. So whoever rings while the loop is about to wake only joins in.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # bells are kept by loop, which must not live for theirs
        self._due: deque[asyncio.Event] = deque()
        self._called = False

    def ring(self, event: asyncio.Event) -> None:
        """Set an event soon. Raises RuntimeError if the loop is closed."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            raise RuntimeError("the event loop is closed")
        self._due.append(event)
        if self._called:
            return
        try:  # Ctrl-C may come at any point
            self._called = True  # before: it may wake, and see, at once
            loop.call_soon_threadsafe(self._wake)
        except BaseException:
            self._called = False
            raise

    def _wake(self) -> None:
        self._called = False  # first: who comes from now on calls again
        while self._due:
            self._due[0].set()
            self._due.popleft()
