"""Stage: a Part somewhere. The one protocol between a StagedProgram and processes, actors, or whatever runs parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mistral_portable.staging.part import Made, Part

__all__ = ["Handle", "LocalStage", "Stage"]


class Handle(Protocol):
    """The result of a call, which may still be to come."""

    def result(self) -> Any:
        """Wait for it and return it, or raise the call's error; the same each time."""


class Stage(Protocol):
    """A Part that runs somewhere."""

    def submit(self, method: str, *arguments: Any) -> Handle:
        """Let the part's method of that name be called, after all that were submitted before. Returns at once.

        arguments: picklable values, and handles of other stages, whose results take their place; the error of one of
        these is the error of this call. A part that is lost is a ClosedError.
        """

    def close(self) -> None:
        """End the part, whatever it does. Calls whose results are still to come raise ClosedError."""


@dataclass(frozen=True)
class _Result:
    value: Any

    def result(self) -> Any:
        return self.value


class LocalStage:
    """A part in this process, which runs when it is asked: for tests, and to see what a cut changes."""

    def __init__(self, make: Callable[[], Made]) -> None:
        self._part = Part(make)

    def submit(self, method: str, *arguments: Any) -> Handle:
        """Call the method now, and raise its error now."""
        ready = [argument.result() if isinstance(argument, _Result) else argument for argument in arguments]
        return _Result(getattr(self._part, method)(*ready))

    def close(self) -> None:
        """Release the part's threads and memory."""
        self._part.close()
