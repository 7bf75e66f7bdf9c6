"""Task: a function that is called between two steps."""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Task"]

Result = TypeVar("Result")


class Task(Generic[Result]):
    """A function that the thread which runs steps calls between two of them. For `Loop` it is ready when finished."""

    made: Sequence[object] = ()
    cancelled = False

    def __init__(self, action: Callable[[], Result]) -> None:
        self.finished = False
        self.by_main = threading.current_thread() is threading.main_thread()
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
