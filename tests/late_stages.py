"""LateStage: a stage in this process that does nothing before somebody waits for it, as processes may."""

from collections import deque
from collections.abc import Callable
from typing import Any

from mistral_portable.staging import Made, Part

__all__ = ["LateCall", "LateStage"]


class LateCall:
    """A call that is made, after all that were submitted to its stage before, when its result is asked for."""

    def __init__(self, stage: "LateStage", method: str, arguments: tuple[Any, ...]) -> None:
        self.stage, self.method, self.arguments = stage, method, arguments
        self.value: Any = None
        self.error: BaseException | None = None

    def result(self) -> Any:
        while self in self.stage.calls:
            first = self.stage.calls[0]
            try:
                ready = [some.result() if isinstance(some, LateCall) else some for some in first.arguments]
                first.value = self.stage.call(first.method, ready)
            except Exception as error:
                first.error = error
            self.stage.calls.popleft()
        if self.error is not None:
            raise self.error
        return self.value


class LateStage:
    """Made in place of `ProcessStage`. calls: those that are still to be made. steps: how many steps it has begun.
    before_step: called with that number before a step, and may raise the step's error."""

    def __init__(self, name: str, make: Callable[[], Made]) -> None:
        self.name = name
        self.calls: deque[LateCall] = deque()
        self.steps = 0
        self.before_step: Callable[[int], None] = lambda number: None
        self._part = Part(make)

    def submit(self, method: str, *arguments: Any) -> LateCall:
        self.calls.append(LateCall(self, method, arguments))
        return self.calls[-1]

    def call(self, method: str, arguments: list[Any]) -> Any:
        if method == "step":
            self.steps += 1
            self.before_step(self.steps)
        return getattr(self._part, method)(*arguments)

    def close(self) -> None:
        self._part.close()
