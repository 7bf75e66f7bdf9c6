"""Drafting: what the next step tries beyond the newest token of each answer."""

from collections.abc import Iterable, Sequence
from itertools import islice, takewhile
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary

from mistral_portable.cache import common_length
from mistral_portable.drafts import Acceptance, StepCosts, Suffixes, best_lengths
from mistral_portable.engine.request import Completion, Request
from mistral_portable.engine.scheduler import Turn

__all__ = ["MOST_DRAFTED", "DraftSource", "Drafting", "SuffixDrafting"]

MOST_DRAFTED = 15
"""Tokens of a draft, which with the newest one fill groups that kernels take at a time."""

_MOST_TOKENS = 64  # of a step with drafts
_READ = 1024  # tokens of a text that are looked at in one step: 2 ms
_LEAST_CHANCE = 0.02  # of the first token: below, none is proposed
_PAUSE = 64  # steps without drafts behind one for which memory was short


class DraftSource(Protocol):
    """Proposes tokens for the answers of a loop, well or badly: the sampler says what is right."""

    def read(self, completions: Iterable[Completion]) -> None:
        """Look at the prompts of completions that a step reads."""

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
            self._source.read([key for key, _ in turn.reading if isinstance(key, Completion) and key.drafts])
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
                draft = list(islice(known, min(MOST_DRAFTED, completion.left - 1)))  # the last token is no step's
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


class SuffixDrafting:
    """Goes on as the text did where its end stood before: it quotes, repeats, edits.

    A draft is as long as pays, by the time of steps and by how often such drafts were right in this text. Texts that
    do not repeat themselves pay for the search alone, some 6 us per token.
    """

    def __init__(self) -> None:
        self._texts: WeakKeyDictionary[Completion, _Text] = WeakKeyDictionary()
        self._costs = StepCosts(_MOST_TOKENS)

    def read(self, completions: Iterable[Completion]) -> None:
        """Look at the prompts, a part in each step, while they are read."""
        for completion in completions:
            self._text(completion).catch_up(completion.tokens)

    def choose(self, completions: Sequence[Completion]) -> list[Sequence[int]]:
        """Return drafts that pay."""
        offers = [self._offer(completion) if completion.drafts else () for completion in completions]
        if not any(offers):
            return list[Sequence[int]](offers)
        chances = [
            self._text(completion).chances(len(offer)) if offer else ()
            for completion, offer in zip(completions, offers, strict=True)
        ]
        lengths = best_lengths(chances, self._costs.seconds())
        return [offer[:length] for offer, length in zip(offers, lengths, strict=True)]

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn what steps cost."""
        self._costs.observe(tokens, seconds)

    def forget(self, completion: Completion) -> None:
        """Drop the text, of which streams that are kept have no need."""
        self._texts.pop(completion, None)

    def _offer(self, completion: Completion) -> Sequence[int]:
        text = self._text(completion)
        most = min(MOST_DRAFTED, completion.left - 1)
        return text.offer(most) if text.catch_up(completion.tokens) else ()

    def _text(self, completion: Completion) -> "_Text":
        text = self._texts.get(completion)
        if text is None:
            text = self._texts[completion] = _Text()
        return text


class _Text:
    """An answer with its prompt, and what was offered for its end: it is compared with what came, tried or not."""

    def __init__(self) -> None:
        self._suffixes = Suffixes()
        self._acceptance = Acceptance()
        self._offered: Sequence[int] = ()
        self._match = 0

    def catch_up(self, tokens: Sequence[int]) -> bool:
        """Look at what is new, up to _READ tokens of it; whether that is all."""
        known = len(self._suffixes.tokens)
        new = tokens[known : known + _READ]
        if self._offered and new:
            right = common_length(self._offered, new)
            for behind in range(min(right + 1, len(new), len(self._offered))):
                self._acceptance.observe(self._match + behind, behind < right)
            self._offered = ()
        self._suffixes.extend(new)
        return known + len(new) == len(tokens)

    def offer(self, most: int) -> Sequence[int]:
        """Return what the text may go on with."""
        self._match = self._suffixes.match
        self._offered = self._suffixes.continuation(most) if self._match and most > 0 else ()
        return self._offered if self._acceptance.of(self._match) >= _LEAST_CHANCE else ()

    def chances(self, count: int) -> list[float]:
        """How likely each of so many tokens of the offer is, if those before it are right."""
        return [self._acceptance.of(self._match + behind) for behind in range(count)]
