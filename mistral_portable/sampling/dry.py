"""DRY, "don't repeat yourself": a penalty for tokens that would lengthen a repetition, the higher the longer it is.

Source: https://github.com/oobabooga/text-generation-webui/pull/5677, as llama.cpp has it (`llama_sampler_dry_apply`).
"""

from collections.abc import Callable, Sequence
from math import log

import numpy as np

from mistral_portable.sampling.processors import Positions, Row

__all__ = ["Breakers", "dry", "longest_that_counts", "repeats"]

_MOST_LOG = 88.7  # of a power of the base: beyond, float32 has no numbers
_MOST_MORE = 1024  # tokens: each takes a pass over what may be a repetition, and no base that is meant gets so far


def dry(row: Row, tokens: Positions, lengths: Positions, multiplier: float, base: float, allowed: int) -> None:
    """Subtract `multiplier * base ** (length - allowed)` from the logits of the distinct ids `tokens` [n].

    lengths [n]: of the repetitions that they would lengthen, from `allowed` to `longest_that_counts`; base: 1 or more.

    >>> row = np.float32([1, 1, 1])
    >>> dry(row, np.array([2, 0]), np.array([2, 4]), 0.5, 2.0, 2); row
    array([-1. ,  1. ,  0.5], dtype=float32)
    """
    penalties = multiplier * base ** (lengths - allowed)
    row[tokens] -= penalties.clip(max=np.finfo(np.float32).max / 2).astype(np.float32)


def longest_that_counts(base: float, allowed: int) -> int:
    """Return the length of a repetition from which on the penalty is no higher.

    >>> longest_that_counts(1.75, 2), longest_that_counts(1.0, 2)
    (160, 2)
    """
    return allowed + (min(_MOST_MORE, int(_MOST_LOG / log(base))) if base > 1 else 0)


def repeats(tokens: Positions, allowed: int, most: int) -> tuple[Positions, Positions]:
    """Find what would lengthen a repetition of the text's end: ids [n], rising, and the lengths [n] of the repetitions.

    allowed: the least length that counts; most: the largest one, longer ones count as this.

    >>> repeats(np.array([1, 2, 3, 3, 2, 3, 9, 1, 2, 3]), 2, 8)    # 1 2 3 was followed by 3, and 2 3 by 9
    (array([3, 9]), array([3, 2]))
    """
    last = tokens.size - 1
    ends = np.arange(max(0, last))  # of what is compared with the text's end
    lengths = np.zeros(ends.size, np.int64)
    for length in range(min(most, last)):
        ends = ends[ends >= length]
        ends = ends[tokens[ends - length] == tokens[last - length]]
        if not ends.size:
            break
        lengths[ends] += 1
    ends = np.flatnonzero(lengths >= allowed)
    found, places = np.unique(tokens[ends + 1], return_inverse=True)
    longest = np.zeros(found.size, np.int64)
    np.maximum.at(longest, places, lengths[ends])
    return found, longest


class Breakers:
    """Texts across which nothing counts as a repetition, and how many tokens have come behind the last of them.

    >>> pieces = [b"a", b"b:", b"c", b"\\n", b"\\nB"]
    >>> breakers = Breakers([":", "\\nBc"], pieces.__getitem__, [1, 0, 4, 2, 0, 0])
    >>> breakers.behind, breakers.holds(1), breakers.holds(4)    # a newline, B and c; then two tokens
    (2, True, False)
    """

    def __init__(self, texts: Sequence[str], piece: Callable[[int], bytes], tokens: Sequence[int]) -> None:
        """piece: the bytes of a token. tokens: the text so far."""
        self._texts = [text.encode() for text in texts]
        self._longest = max(map(len, self._texts), default=0)
        self._piece = piece
        self._tail = b""  # bytes before the next token that may begin a breaker
        self.behind = 0
        """Tokens behind the last breaker, or from the beginning of the text on."""
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Go on behind a token."""
        piece = self._piece(token)
        whole = self._tail + piece
        # A breaker that ends in this token begins no earlier than its length before it.
        ends = any(whole.find(text, max(0, len(self._tail) - len(text) + 1)) >= 0 for text in self._texts)
        self.behind = 0 if ends else self.behind + 1
        self._tail = whole[len(whole) - self._longest + 1 :] if len(whole) >= self._longest else whole

    def holds(self, token: int) -> bool:
        """Whether a token alone has a breaker in it: it is not penalized."""
        piece = self._piece(token)
        return any(text in piece for text in self._texts)
