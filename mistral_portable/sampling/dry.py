"""DRY, "don't repeat yourself": a penalty for tokens that would lengthen a repetition, the higher the longer it is.

Source: https://github.com/oobabooga/text-generation-webui/pull/5677, as llama.cpp has it (`llama_sampler_dry_apply`).
"""

from collections.abc import Callable, Sequence
from copy import copy

import numpy as np

from mistral_portable.errors import InputError
from mistral_portable.sampling.params import SamplingParams
from mistral_portable.sampling.processors import Positions, Row

__all__ = ["Breakers", "Dry", "Repetitions", "dry"]

_MOST = float(np.finfo(np.float32).max) / 2  # of a penalty: logits stay finite


def dry(row: Row, tokens: Positions, lengths: Positions, multiplier: float, base: float, allowed: int) -> None:
    """Subtract `multiplier * base ** (length - allowed)` from the logits of the distinct ids `tokens` [n].

    lengths [n]: of the repetitions that they would lengthen, `allowed` or more. base: 1 or more.

    >>> row = np.float32([1, 1, 1])
    >>> dry(row, np.array([2, 0]), np.array([2, 4]), 0.5, 2.0, 2); row
    array([-1. ,  1. ,  0.5], dtype=float32)
    """
    with np.errstate(over="ignore"):
        penalties = multiplier * base ** (lengths - allowed)
    row[tokens] -= penalties.clip(max=_MOST).astype(np.float32)


class Dry:
    """The rule for one text."""

    def __init__(self, params: SamplingParams, piece: Callable[[int], bytes] | None, text: Positions) -> None:
        """piece: the bytes of a token; None: there is no tokenizer. text: ids [n] so far.

        Raises InputError if `dry_sequence_breakers` need a tokenizer.
        """
        if params.dry_sequence_breakers and piece is None:
            raise InputError("dry_sequence_breakers need a tokenizer, and there is none: pass dry_sequence_breakers=()")
        self._params = params
        self._breakers = Breakers(params.dry_sequence_breakers, piece or (lambda token: b""), text.tolist())
        self._repetitions = Repetitions(text)

    def copy(self) -> "Dry":
        """Return another one that stands in the same place and goes on alone."""
        other = copy(self)
        other._breakers, other._repetitions = copy(self._breakers), copy(self._repetitions)
        return other

    def append(self, before: Positions, token: int) -> None:
        """Go on behind the text `before`."""
        self._breakers.append(token)
        self._repetitions.append(before, token)

    def penalize(self, row: Row, text: Positions) -> None:
        """Change the logits of what would lengthen a repetition. text: ids [n], all of them."""
        p = self._params
        last = text if p.dry_penalty_last_n < 0 else text[max(0, text.size - p.dry_penalty_last_n) :]
        tokens, lengths = self._repetitions.continued(last, allowed=p.dry_allowed_length, most=self._breakers.behind)
        kept = [place for place, token in enumerate(tokens.tolist()) if not self._breakers.holds(token)]
        dry(row, tokens[kept], lengths[kept], p.dry_multiplier, p.dry_base, p.dry_allowed_length)


class Repetitions:
    """How much of the end of a text stands at each place before.

    >>> text = np.array([1, 2, 3, 3, 2, 3, 9, 1, 2, 3])
    >>> found = Repetitions(text)
    >>> found.continued(text, allowed=2, most=8)    # 1 2 3 was followed by 3, and 2 3 by 9
    (array([3, 9]), array([3, 2]))
    """

    def __init__(self, text: Positions) -> None:
        self._lengths = np.array(_suffix_lengths(text.tolist()), np.int64)

    def append(self, before: Positions, token: int) -> None:
        """Go on behind the text `before`."""
        if before.size:  # what ends at a place is one token longer than what ended before it
            self._lengths = np.where(before == token, np.append(1, self._lengths + 1), 0)

    def continued(self, text: Positions, *, allowed: int, most: int) -> tuple[Positions, Positions]:
        """Find what would lengthen a repetition: ids [n], rising, and the lengths [n] of the longest of them so far.

        text: all of it, or its last tokens, to which the lengths then belong. allowed: the least length that counts.
        most: the largest one; longer ones count as this.
        """
        lengths = self._lengths[self._lengths.size - max(0, text.size - 1) :]
        lengths = np.minimum(lengths, np.arange(1, lengths.size + 1)).clip(max=most)
        ends = np.flatnonzero(lengths >= allowed)
        found, places = np.unique(text[ends + 1], return_inverse=True)
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


def _suffix_lengths(text: Sequence[int]) -> list[int]:
    """For each place but the last: how many tokens up to it are those at the end of the text.

    By the Z-function of the text read backwards: in a stretch that equals the beginning, lengths are those found there.

    >>> _suffix_lengths([1, 2, 9, 1, 2])
    [0, 2, 0, 0]
    """
    backwards, lengths = text[::-1], [0] * len(text)
    first = last = 0  # of the stretch that reaches furthest
    for place in range(1, len(text)):
        length = min(lengths[place - first], last - place) if place < last else 0
        while place + length < len(text) and backwards[length] == backwards[place + length]:
            length += 1
        lengths[place] = length
        if place + length > last:
            first, last = place, place + length
    return lengths[:0:-1]
