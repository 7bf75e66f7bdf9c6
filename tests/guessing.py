"""Guessing: a source of drafts that knows what comes, and says something else now and then."""

import random
from collections.abc import Sequence

from mistral_portable.engine.request import Completion

__all__ = ["Guessing"]


class Guessing:
    """Proposes what the texts it knows go on with, each token wrong with a chance, and as many as it likes."""

    def __init__(self, seed: int, wrong: float, most: int = 20) -> None:
        """wrong: the chance that a token is another one, which need not be in the vocabulary."""
        self.texts: list[Sequence[int]] = []
        self.proposed = 0
        self._random = random.Random(seed)
        self._wrong = wrong
        self._most = most

    def read(self, completions: Sequence[Completion], *, alone: bool) -> None:
        """Nothing: it knows."""

    def choose(self, completions: Sequence[Completion]) -> list[Sequence[int]]:
        return [self._draft(completion.tokens) for completion in completions]

    def observe(self, tokens: int, seconds: float) -> None:
        """Nothing: it costs what it costs."""

    def forget(self, completion: Completion) -> None:
        """Nothing: there is nothing."""

    def _draft(self, tokens: list[int]) -> list[int]:
        known = next((text for text in self.texts if list(text[: len(tokens)]) == tokens), tokens)
        right = [*known[len(tokens) :], *[7] * self._most]
        draft = [
            self._random.choice([token + 1, 3, -1, 10**9]) if self._random.random() < self._wrong else token
            for token in right[: self._random.randint(0, self._most)]
        ]
        self.proposed += len(draft)
        return draft
