"""StepCosts: how long steps of a number of tokens take, learned from those that were run."""

from math import inf

__all__ = ["StepCosts"]

_RISE = 0.2  # the part of a longer time that counts
_WHOLE = 16  # tokens that multiply as long as a step reads weights, before that is measured
_FORGET = 512  # steps after which a time is forgotten: batches and texts are others then


class StepCosts:
    """Seconds of a step by its number of tokens, 1 to `most`.

    More tokens never take less: a shorter time of a larger step counts for smaller ones, too. Sizes between two that
    were run lie on a line between them. Larger ones are guessed to go on by half of what a token of the largest known
    one took, or a sixteenth of it all if that is less: most of a short step is to read weights, and of a long one to
    multiply, so more tokens cost between nothing and their share. The last two sizes do not tell: kernels take tokens
    in groups, and the first token behind a full one is dear. Of sizes below those that were run nothing is known. The
    first step of a size does not count: something may have been compiled.

    >>> costs = StepCosts(6)
    >>> for tokens, seconds in [(2, 16.0), (4, 28.0), (5, 20.0)] * 2: costs.observe(tokens, seconds)
    >>> costs.seconds()    # index 0 is no step
    [0.0, 0.0, 16.0, 18.0, 20.0, 20.0, 21.25]
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._seconds: dict[int, float] = {}
        self._noted: dict[int, int] = {}
        self._steps = 0
        self._all: list[float] | None = None

    def observe(self, tokens: int, seconds: float) -> None:
        """Note the time of a step. One that is longer than before counts little: something else may have run, too."""
        if tokens > self._most:
            return
        self._steps += 1
        if tokens in self._noted:
            before = self._seconds[tokens] if self._is_known(tokens) else 0.0
            if before and seconds > before:
                seconds = before + _RISE * (min(seconds, 2 * before) - before)
            self._seconds[tokens] = seconds
            self._all = None
        self._noted[tokens] = self._steps

    def seconds(self) -> list[float]:
        """The time of steps of 0, 1, 2 ... `most` tokens; 0.0 up to the smallest size that is known."""
        if self._all is None:
            self._all = self._filled()
        return self._all

    def _filled(self) -> list[float]:
        least, known = inf, list[tuple[int, float]]()
        for tokens in sorted(filter(self._is_known, self._seconds), reverse=True):
            least = min(least, self._seconds[tokens])
            known.append((tokens, least))
        if not known:
            return [0.0] * (self._most + 1)
        size, time = known.pop()
        filled = [0.0] * size + [time]
        while known:
            larger, longer = known.pop()
            slope = (longer - time) / (larger - size)
            filled += [time + slope * more for more in range(1, larger - size + 1)]
            size, time = larger, longer
        slope = time / max(_WHOLE, 2 * size)
        return filled + [time + slope * more for more in range(1, self._most - size + 1)]

    def _is_known(self, tokens: int) -> bool:
        return tokens in self._seconds and self._noted[tokens] + _FORGET >= self._steps
