"""Bans: which tokens a text may not go on with, by what it says already."""

from collections.abc import Sequence

import numpy as np

from mistral_portable.sampling.processors import Positions

__all__ = ["Words", "repeating"]


def repeating(tokens: Positions, n: int) -> Positions:
    """Find the ids behind which the last n tokens would stand in the text before, for n >= 1.

    Source: transformers' NoRepeatNGramLogitsProcessor; the prompt counts.

    >>> repeating(np.array([5, 6, 7, 5, 6, 8, 5, 6]), 3)    # 5 6 was followed by 7 and by 8
    array([7, 8])
    """
    tail = tokens[max(0, tokens.size - n + 1) :]
    if tail.size < n - 1:
        return tokens[:0]
    begins = np.arange(tokens.size - n + 1)  # of the n-grams that there are
    for place, token in enumerate(tail):
        begins = begins[tokens[begins + place] == token]
        if not begins.size:
            break
    return np.unique(tokens[begins + n - 1])


class Words:
    """Words of one token or more that a text may not contain. Source: transformers' NoBadWordsLogitsProcessor.

    >>> words = Words([[4], [5, 6], [7, 5, 8]])
    >>> words.completing(np.array([7, 5]))    # 4 ends a word anywhere, 6 behind 5, 8 behind 7 5
    array([4, 6, 8])
    """

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        ends: dict[tuple[int, ...], set[int]] = {}
        for word in words:
            ends.setdefault(tuple(word[:-1]), set()).add(word[-1])
        self._ends = {begin: np.array(sorted(last)) for begin, last in ends.items()}
        self._lengths = sorted({len(begin) for begin in ends})

    def completing(self, tokens: Positions) -> Positions:
        """Find the ids that would complete a word behind a text [n]; one may come twice."""
        found = [
            self._ends.get(tuple(tokens[tokens.size - length :].tolist()), tokens[:0])
            for length in self._lengths
            if length <= tokens.size
        ]
        return np.concatenate(found) if found else tokens[:0]
