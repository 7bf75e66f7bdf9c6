"""Suffix drafting: a text goes on as it did where its end stood before."""

from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

from mistral_portable.drafts import NOTHING, Acceptance, Offer, StepCosts, Suffixes, best_lengths
from mistral_portable.engine.drafting import MOST_TOKENS, most_drafted
from mistral_portable.engine.request import Completion

__all__ = ["SuffixDrafting", "SuffixOffers"]

_READ = 1024  # tokens of a text that are looked at in one step: 2 ms
_LEADS = 8  # last tokens of a prompt that stand before a prediction, too: behind them the answer begins
_LEAST_CHANCE = 0.02  # of the first token: below, none is proposed
_SLOWLY = 1 / 64  # the weight of a token in what all texts have in common
_FIRST = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.8)  # chances behind 0, 1, 2 to 3, 4 to 7, 8 to 15, 16 to 31, and more tokens


class SuffixDrafting:
    """Goes on as the text did where its end stood before: it quotes, repeats, edits.

    A draft is as long as pays, by the time of steps and by how often such drafts were right in this text. Texts that
    do not repeat themselves pay for the search alone, 10 to 20 us per token.
    """

    def __init__(self) -> None:
        self._offers = SuffixOffers()
        self._costs = StepCosts(MOST_TOKENS)

    def read(self, completions: Sequence[Completion], *, alone: bool) -> None:
        """Look at the prompts, a part in each step, while they are read."""
        self._offers.read(completions)

    def choose(self, completions: Sequence[Completion]) -> list[Sequence[int]]:
        """Return drafts that pay."""
        offers = [self._offers.make(completion) for completion in completions]
        if not any(offer.tokens for offer, _ in offers):
            return [()] * len(offers)
        lengths = best_lengths([chances for _, chances in offers], self._costs.seconds())
        return [offer.tokens[:length] for (offer, _), length in zip(offers, lengths, strict=True)]

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn what steps cost."""
        self._costs.observe(tokens, seconds)

    def forget(self, completion: Completion) -> None:
        """Drop the text, of which streams that are kept have no need."""
        self._offers.forget(completion)


class SuffixOffers:
    """Finds, for each of a loop's answers, what stood behind its end before.

    A text begins with the chances that were usual in those before it, as many answers end before they teach their own.
    """

    def __init__(self) -> None:
        self._usual = Acceptance(_FIRST, _SLOWLY)
        self._texts: WeakKeyDictionary[Completion, _Text] = WeakKeyDictionary()

    def read(self, completions: Iterable[Completion]) -> None:
        """Look at texts that are being read, a part of each."""
        for completion in completions:
            self._text(completion).catch_up(completion.tokens)

    def make(self, completion: Completion) -> tuple[Offer, list[float]]:
        """Return what the text may go on with, perhaps nothing, and the chance of each token if those before it are
        right."""
        if not completion.drafts:
            return NOTHING, []
        text = self._text(completion)
        return text.offer(most_drafted(completion)) if text.catch_up(completion.tokens) else (NOTHING, [])

    def forget(self, completion: Completion) -> None:
        """Drop the text."""
        self._texts.pop(completion, None)

    def _text(self, completion: Completion) -> "_Text":
        text = self._texts.get(completion)
        if text is None:
            before = completion.prediction
            text = self._texts[completion] = _Text(
                [*completion.tokens[-_LEADS:], *before] if before else (), self._usual
            )
        return text


class _Text:
    """An answer with its prompt, and what was offered for its end: it is compared with what came, tried or not.

    A drafted token's kind is the size of the match before it: one of 1 token says little, one of 20 is seldom wrong.
    A draft's token behind a match of m tokens is one behind m + 1 if it is right, and so on.
    """

    def __init__(self, before: Sequence[int], usual: Acceptance) -> None:
        """before: tokens that it may repeat besides its own. usual: the chances to begin with, which learn from it."""
        self._before = before
        self._suffixes = Suffixes()
        self._usual = usual
        self._learned = Acceptance(usual.chances)
        self._offered = NOTHING

    def catch_up(self, tokens: Sequence[int]) -> bool:
        """Look at what is new, up to _READ tokens of it; whether that is all."""
        known = len(self._suffixes.tokens) - len(self._before)
        if known < 0:
            self._suffixes.extend(self._before[known:][:_READ])
            return False
        new = tokens[known : known + _READ]
        if new:
            for learning in (self._learned, self._usual):
                self._offered.judge(new, learning)
            self._offered = NOTHING
        self._suffixes.extend(new)
        return known + len(new) == len(tokens)

    def offer(self, most: int) -> tuple[Offer, list[float]]:
        """Return what the text may go on with, and its chances."""
        match = self._suffixes.match
        if not match or most < 1:
            return NOTHING, []
        tokens = self._suffixes.continuation(most)
        kinds = [min((match + behind).bit_length(), len(_FIRST) - 1) for behind in range(len(tokens))]
        self._offered = Offer(tokens, kinds)
        chances = self._offered.chances(self._learned)
        return (self._offered, chances) if chances[0] >= _LEAST_CHANCE else (NOTHING, [])
