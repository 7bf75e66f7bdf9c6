"""Drafting: what the next step tries beyond the newest token of each answer."""

from collections.abc import Sequence
from itertools import islice, takewhile
from typing import Any, Protocol, cast

from mistral_portable.engine.request import Completion, Request
from mistral_portable.engine.scheduler import Turn

__all__ = ["MOST_DRAFTED", "MOST_TOKENS", "DraftSource", "Drafting", "most_drafted"]

MOST_DRAFTED = 15
"""Tokens of a draft, which with the newest one fill groups that kernels take at a time."""

MOST_TOKENS = 64
"""Tokens of a step with drafts."""

_PAUSE = 64  # steps without drafts behind one for which memory was short


def most_drafted(completion: Completion) -> int:
    """Return how many tokens a step may try beyond the newest one of an answer."""
    return min(MOST_DRAFTED, completion.drafts, completion.left - 1)  # the last token is no step's


class DraftSource(Protocol):
    """Proposes tokens for the answers of a loop, well or badly: the sampler says what is right."""

    def read(self, completions: Sequence[Completion], *, alone: bool) -> None:
        """Look at the prompts of completions that a step reads. alone: whether no answer waits for that step."""

    def choose(self, completions: Sequence[Completion]) -> list[Sequence[int]]:
        """Return a draft, perhaps empty, for each of the completions that a step decodes."""

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn how long a step has taken that decoded so many tokens, those of drafts included."""

    def forget(self, completion: Completion) -> None:
        """Drop what is known of an answer that has ended."""


class Drafting:
    """Chooses what a step tries, of what a source proposes. A wrong draft costs time and changes nothing else."""

    def __init__(self, source: DraftSource, *, vocab_size: int) -> None:
        """vocab_size: ids from there on are in no draft."""
        self._source = source
        self._vocab_size = vocab_size
        self._paused = 0  # steps that are still to be made without

    def choose(self, turn: Turn[Request[Any]]) -> dict[Request[Any], Sequence[int]]:
        """Return the drafts of a step, none of them empty; none beside prompts, which want the room."""
        if turn.reading:
            read = [key for key, _ in turn.reading if isinstance(key, Completion) and key.drafts]
            self._source.read(read, alone=not turn.decoding)
            return {}
        if self._paused:
            self._paused -= 1
            return {}
        decoding = cast(list[Completion], turn.decoding)  # nothing else decodes
        if not any(completion.drafts for completion in decoding):
            return {}
        drafts = dict[Request[Any], Sequence[int]]()
        for completion, proposed in zip(decoding, self._source.choose(decoding), strict=True):
            if proposed and completion.drafts and completion.fed + 1 == len(completion.tokens):
                known = takewhile(lambda token: 0 <= token < self._vocab_size, proposed)
                draft = list(islice(known, most_drafted(completion)))
                if draft:
                    drafts[completion] = draft
        return drafts

    def observe(self, turn: Turn[Request[Any]], tokens: int, seconds: float) -> None:
        """Learn how long a step has taken, which had so many tokens."""
        if not turn.reading:
            self._source.observe(tokens, seconds)

    def pause(self) -> None:
        """Choose nothing for some steps: memory was short."""
        self._paused = _PAUSE

    def forget(self, completion: Completion) -> None:
        """Drop what is known of an answer that has ended."""
        self._source.forget(completion)
