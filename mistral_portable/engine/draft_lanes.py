"""DraftLanes: a draft model's cache, which follows the answers of a loop."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import Chunk
from mistral_portable.engine.core import Core
from mistral_portable.engine.request import Completion

__all__ = ["Ahead", "DraftLanes"]


class DraftLanes:
    """A lane of the draft model for each answer. It holds nothing but a beginning of the answer's own text: what is
    drafted goes into a fork of it, so that nothing need be taken back.

    All calls raise the errors of `Core.run`, and BusyError if the model has too few lanes.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lanes: WeakKeyDictionary[Completion, int] = WeakKeyDictionary()

    @property
    def max_context(self) -> int:
        """Tokens that a text and its draft may reach together."""
        return self._core.max_context

    @property
    def max_chunk(self) -> int:
        """Tokens that `ahead` may find unread of all its answers together."""
        return self._core.manager.spec.max_chunk

    def unread(self, completion: Completion) -> int:
        """Tokens of its text that the draft model has not seen."""
        lane = self._lanes.get(completion)
        return len(completion.tokens) - (0 if lane is None else self._core.manager.length(lane))

    def read(self, completions: Iterable[Completion]) -> None:
        """Read on in texts, up to `max_chunk` tokens of them all, but for the newest token of each."""
        room, chunks = self.max_chunk, list[Chunk]()
        for completion in completions:
            if len(completion.tokens) > self.max_context or room == 0:
                continue
            lane = self._lane(completion)
            begin = self._core.manager.length(lane)
            if tokens := completion.tokens[begin : len(completion.tokens) - 1][:room]:
                chunks.append(Chunk(lane, tokens))
                room -= len(tokens)
        if chunks:
            self._core.run(chunks)

    @contextmanager
    def ahead(self, completions: Sequence[Completion]) -> Iterator["Ahead"]:
        """Go on behind the ends of texts, of which at most `max_chunk` tokens are unread, for a `with` block."""
        self._close_lost()
        ahead = Ahead(self, self._core, [self._lane(completion) for completion in completions], completions)
        try:
            yield ahead
        finally:
            ahead.close()

    def forget(self, completion: Completion) -> None:
        """Close the lane of an answer. What it holds is kept for texts that begin alike."""
        lane = self._lanes.pop(completion, None)
        if lane is not None:
            manager = self._core.manager
            manager.keep(lane, completion.tokens[: manager.length(lane)], salt=completion.salt)
            manager.close(lane)

    def _lane(self, completion: Completion) -> int:
        lane = self._lanes.get(completion)
        if lane is None:
            lane, _ = self._core.manager.resume(completion.tokens[:-1], salt=completion.salt, owner=self)
            self._lanes[completion] = lane
        return lane

    def _close_lost(self) -> None:
        """Close lanes of nobody: Ctrl-C came while one was opened or closed."""
        held = set(self._lanes.values())
        for lane in self._core.manager.lanes_of(self):
            if lane not in held:
                self._core.manager.close(lane)


class Ahead:
    """Made by `DraftLanes.ahead`."""

    def __init__(self, owner: object, core: Core, lanes: Sequence[int], completions: Sequence[Completion]) -> None:
        self._owner = owner
        self._core = core
        self._lanes = lanes
        self._completions = completions
        self._forks: dict[int, int] = {}

    def begin(self) -> NDArray[np.float32]:
        """Read what is unread: logits float32 [texts, vocab_size] behind the newest token of each text."""
        length = self._core.manager.length
        chunks = [
            Chunk(lane, tokens, (len(tokens) - 1,))
            for lane, completion in zip(self._lanes, self._completions, strict=True)
            for tokens in [completion.tokens[length(lane) :]]
        ]
        return self._core.step(chunks)

    def go_on(self, texts: Sequence[int], tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Read drafted tokens behind some of the texts, given by their indices: logits [n, vocab_size] behind them."""
        for text in texts:
            if text not in self._forks:
                self._forks[text] = self._core.manager.fork(self._lanes[text], owner=self._owner)
        return self._core.step(
            [Chunk(self._forks[text], some, (len(some) - 1,)) for text, some in zip(texts, tokens, strict=True)]
        )

    def close(self) -> None:
        """Forget what was drafted."""
        while self._forks:
            self._core.manager.close(self._forks.popitem()[1])
