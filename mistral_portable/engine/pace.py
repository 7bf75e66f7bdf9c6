"""Pace: how many tokens of prompts a step reads beside sequences that decode."""

__all__ = ["Pace"]

_BLOCK = 8  # tokens that kernels take together: a step of 9 takes about as long as one of 16
_SLOWDOWN = 2.4  # a step that also reads takes at most so many times as long as one that only decodes, ...
_SLACK = 1.25  # ... or as the shortest one that reads, where that takes longer: fewer tokens would save little
_FORGET = 32  # steps that read, after which a size that took too long is tried again, ...
_REMIND = 64  # ... and larger ones than the least, after which this one is
_RISE = 0.2  # the part of a longer time that counts


class Pace:
    """Finds, by the times of steps, the most blocks of 8 tokens that do not slow the others down too much.

    Example: 4 sequences decode in 27 ms, so a step may take 65. Blocks are tried: 1 (4 tokens of a prompt beside the 4)
    takes 37 ms, 2 take 57, 4 take 95, 3 take 76: so 2 it is, 12 tokens of the prompt in each step. Every 32 steps 3 are
    tried again, every 64 steps 1 is.
    """

    def __init__(self) -> None:
        self._decode_s = 0.0  # of a step that only decodes
        self._least_s = 0.0  # of one that reads and has no block more than it must
        self._larger = 0  # steps that read, since that
        self._fits = 0  # blocks of a step that did not take too long
        self._exceeds: int | None = None  # blocks of one that did
        self._doubles = True  # the first time sizes are tried by twice as many, later by one more
        self._steps = 0  # that read, since one took too long
        self._offered = 0  # blocks of the next step

    def room(self, decoding: int) -> int:
        """Tokens of prompts for the next step, beside so many sequences that decode; at least one."""
        if self._exceeds is not None:
            blocks = (self._fits + self._exceeds) // 2
        else:
            blocks = 2 * self._fits if self._doubles else self._fits + 1
        least = decoding // _BLOCK + 1
        self._offered = least if self._larger >= _REMIND else max(blocks, least)
        return self._offered * _BLOCK - decoding

    def observe(self, decoding: int, reading: int, seconds: float) -> None:
        """Note the time of a step, in which so many sequences decoded and so many tokens of prompts were read."""
        if not reading:
            self._decode_s = _shortest(self._decode_s, seconds)
        blocks = -(-(decoding + reading) // _BLOCK)
        if not reading or not decoding or blocks > self._offered:  # more: nobody minded how long it took
            return
        self._larger += 1
        if blocks == decoding // _BLOCK + 1:
            self._larger = 0
            first = min(seconds, 2 * self._decode_s or seconds)
            self._least_s = _shortest(self._least_s or first, seconds)
        self._steps += 1
        if seconds > max(_SLOWDOWN * self._decode_s, _SLACK * self._least_s):
            self._exceeds = min(blocks, self._exceeds or blocks)
            self._fits = min(self._fits, blocks - 1)
            self._doubles, self._steps = False, 0
        else:
            self._fits = max(self._fits, blocks)
            if self._exceeds is not None and (blocks >= self._exceeds or self._steps >= _FORGET):
                self._exceeds = None


def _shortest(before: float, newest: float) -> float:
    """The shortest time of late. It rises slowly: the system may have run something else in the newest one."""
    return newest if not before or newest < before else before + _RISE * (min(newest, 2 * before) - before)
