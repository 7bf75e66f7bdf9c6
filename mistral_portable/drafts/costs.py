"""StepCosts: how long steps of a number of tokens take, learned from those that were run."""

from math import inf

__all__ = ["StepCosts"]

_RISE = 0.2  # the part of a longer time that counts
_MORE = 17 / 16  # times a step's time, for one more token
_FORGET = 512  # steps after which a time is forgotten: batches and texts are others then


class StepCosts:
    """Seconds of a step by its number of tokens, 1 to `most`.

    More tokens never take less: a shorter time of a larger step counts for smaller ones, too. A size that was never
    run counts a sixteenth longer than the next smaller one, so that it is tried when there is good reason. The first
    step of a size does not count: something may have been compiled for it.

    >>> costs = StepCosts(5)
    >>> for tokens, seconds in [(1, 1.0), (3, 1.5), (4, 1.25)] * 2: costs.observe(tokens, seconds)
    >>> costs.seconds()    # index 0 is no step
    [0.0, 1.0, 1.0625, 1.25, 1.25, 1.328125]
    """

    def __init__(self, most: int) -> None:
        self._seconds = [0.0] * (most + 1)
        self._noted = [0] * (most + 1)
        self._steps = 0
        self._all: list[float] | None = None

    def observe(self, tokens: int, seconds: float) -> None:
        """Note the time of a step. One that is longer than before counts little: something else may have run, too."""
        if tokens >= len(self._seconds):
            return
        self._steps += 1
        if not self._noted[tokens]:
            self._noted[tokens] = self._steps
            return
        before = self._seconds[tokens]
        if before and seconds > before:
            seconds = before + _RISE * (min(seconds, 2 * before) - before)
        self._seconds[tokens] = seconds
        self._noted[tokens] = self._steps
        self._all = None

    def seconds(self) -> list[float]:
        """The time of steps of 0, 1, 2 ... `most` tokens; 0.0 up to the first one that is known."""
        if self._all is None:
            self._all = self._filled()
        return self._all

    def _filled(self) -> list[float]:
        known, least = [0.0] * len(self._seconds), inf
        bounds = [inf] * len(known)  # times of larger steps
        for tokens in range(len(known) - 1, 0, -1):
            if self._seconds[tokens] and self._noted[tokens] + _FORGET >= self._steps:
                known[tokens] = least = min(least, self._seconds[tokens])
            bounds[tokens] = least
        for tokens in range(1, len(known)):
            known[tokens] = known[tokens] or min(_MORE * known[tokens - 1], bounds[tokens])
        return known
