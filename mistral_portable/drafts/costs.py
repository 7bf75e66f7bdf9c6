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
        before = self._seconds[tokens] if self._is_known(tokens) else 0.0
        if before and seconds > before:
            seconds = before + _RISE * (min(seconds, 2 * before) - before)
        self._seconds[tokens] = seconds
        self._noted[tokens] = self._steps
        self._all = None

    def seconds(self) -> list[float]:
        """The time of steps of 0, 1, 2 ... `most` tokens; 0.0 up to the smallest size that is known."""
        if self._all is None:
            self._all = self._filled()
        return self._all

    def _filled(self) -> list[float]:
        least, known = inf, list[tuple[int, float]]()
        for tokens in range(len(self._seconds) - 1, 0, -1):
            if self._is_known(tokens):
                least = min(least, self._seconds[tokens])
                known.append((tokens, least))
        known.reverse()
        filled = [0.0] * len(self._seconds)
        if not known:
            return filled
        size, time = known[0]
        filled[size] = time
        for larger, longer in known[1:]:
            slope = (longer - time) / (larger - size)
            filled[size + 1 : larger + 1] = [time + slope * more for more in range(1, larger - size + 1)]
            size, time = larger, longer
        slope = time / max(_WHOLE, 2 * size)
        filled[size + 1 :] = [time + slope * more for more in range(1, len(filled) - size)]
        return filled

    def _is_known(self, tokens: int) -> bool:
        return self._seconds[tokens] > 0 and self._noted[tokens] + _FORGET >= self._steps
