"""DraftLanes: a draft model's cache, which follows the answers of a loop."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import Chunk
from mistral_portable.engine.core import Core
from mistral_portable.engine.request import Completion
from mistral_portable.errors import CacheError

__all__ = ["Ahead", "DraftLanes"]


@dataclass
class _Text:
    """An answer's lane, and how many of its tokens steps have read there: a plan whose step has not run counts not."""

    lane: int
    read: int


class DraftLanes:
    """A lane of the draft model for each answer, with a beginning of the answer's own text. What is drafted goes into a
    fork of it, or where a page is a whole lane, which a fork would copy, behind it until it is rolled back.

    All calls raise the errors of `Core.run`, and BusyError if the model has too few lanes.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._manager = core.manager
        self._ring = core.manager.spec.groups[0].ring
        self._texts: WeakKeyDictionary[Completion, _Text] = WeakKeyDictionary()

    @property
    def max_context(self) -> int:
        """Tokens that a text and its draft may reach together."""
        return self._core.max_context

    @property
    def max_chunk(self) -> int:
        """Tokens of a text that a step reads at most."""
        return self._manager.spec.max_chunk

    def unread(self, completion: Completion) -> int:
        """Tokens of its text that the draft model has not seen."""
        text = self._texts.get(completion)
        return len(completion.tokens) - (0 if text is None else text.read)

    def fitting(self, completions: Iterable[Completion]) -> list[Completion]:
        """Those of the texts for which, with their drafts, there are lanes; one is left to the model's own callers."""
        self._tidy()
        free, fitting = self._manager.spec.max_lanes - len(self._manager.lanes) - 1, list[Completion]()
        for completion in completions:
            needed = (completion not in self._texts) + (not self._ring)
            if needed <= free:
                free -= needed
                fitting.append(completion)
        return fitting

    def read(self, completions: Iterable[Completion], most: int) -> None:
        """Read on in texts, up to so many tokens of them all, as far as the answers' own model has read."""
        room, texts, chunks = min(most, self.max_chunk), list[_Text](), list[Chunk]()
        for completion in self.fitting(completions):
            known = min(completion.fed, len(completion.tokens) - 1)
            if room == 0 or not 0 < known <= self.max_context:
                continue
            text = self._text(completion)
            if tokens := completion.tokens[text.read : known][:room]:
                texts.append(text)
                chunks.append(Chunk(text.lane, tokens))
                room -= len(tokens)
        if chunks:
            self._core.run(chunks)
            _note(texts, chunks)

    @contextmanager
    def ahead(self, completions: Sequence[Completion]) -> Iterator["Ahead"]:
        """Go on behind the ends of texts, of which at most max_chunk tokens are unread, for a `with` block."""
        ahead = Ahead(self, self._core, [self._text(completion) for completion in completions], completions)
        try:
            yield ahead
        finally:
            ahead.close()

    def forget(self, completion: Completion) -> None:
        """Close the lane of an answer. What was read there is kept for texts that begin alike."""
        text = self._texts.get(completion)
        if text is not None:
            if self._is_true(text):
                self._manager.keep(text.lane, completion.tokens[: text.read], salt=completion.salt)
            del self._texts[completion]
            self._manager.close(text.lane)

    def _text(self, completion: Completion) -> _Text:
        """The text's lane, which holds what was read."""
        text = self._texts.get(completion)
        if text is not None and not self._is_true(text):
            self.forget(completion)
            text = None
        if text is None:
            lane, read = self._manager.resume(completion.tokens[:-1], salt=completion.salt, owner=self)
            text = self._texts[completion] = _Text(lane, read)
        return text

    def _is_true(self, text: _Text) -> bool:
        """Whether its lane holds what was read and no more, if need be after a rollback: Ctrl-C may come amid a step,
        and a process may be forked then. False if the window has moved on."""
        if self._manager.length(text.lane) != text.read:
            try:
                self._manager.rollback(text.lane, text.read)
            except CacheError:
                return False
        return True

    def _tidy(self) -> None:
        """Close the lanes of texts that stand still or were put aside, and those of nobody: Ctrl-C came while one was
        opened or closed."""
        for completion in [completion for completion in self._texts if completion.lane is None]:
            self.forget(completion)
        held = {text.lane for text in self._texts.values()}
        for lane in self._manager.lanes_of(self):
            if lane not in held:
                self._manager.close(lane)


class Ahead:
    """Made by `DraftLanes.ahead`."""

    def __init__(self, owner: object, core: Core, texts: Sequence[_Text], completions: Sequence[Completion]) -> None:
        self._owner = owner
        self._core = core
        self._texts = texts
        self._completions = completions
        self._forks: dict[int, int] = {}

    def begin(self) -> NDArray[np.float32]:
        """Read what is unread: logits float32 [texts, vocab_size] behind the newest token of each text."""
        chunks = [
            Chunk(text.lane, tokens, (len(tokens) - 1,))
            for text, completion in zip(self._texts, self._completions, strict=True)
            for tokens in [completion.tokens[text.read :]]
        ]
        logits = self._core.step(chunks)
        _note(self._texts, chunks)
        return logits

    def go_on(self, texts: Sequence[int], tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Read drafted tokens behind some of the texts, given by their indices: logits [n, vocab_size] behind them."""
        lanes = [self._lane(text) for text in texts]
        return self._core.step([Chunk(lane, some, (len(some) - 1,)) for lane, some in zip(lanes, tokens, strict=True)])

    def close(self) -> None:
        """Forget what was drafted; what stands in a text's own lane goes when that is used again."""
        while self._forks:
            self._core.manager.close(self._forks.popitem()[1])

    def _lane(self, text: int) -> int:
        """The lane for what is drafted behind a text."""
        own, manager = self._texts[text].lane, self._core.manager
        if manager.spec.groups[0].ring:
            return own
        if text not in self._forks:
            self._forks[text] = manager.fork(own, owner=self._owner)
        return self._forks[text]


def _note(texts: Iterable[_Text], chunks: Iterable[Chunk]) -> None:
    """Note what a step has read."""
    for text, chunk in zip(texts, chunks, strict=True):
        text.read += len(chunk.tokens)
