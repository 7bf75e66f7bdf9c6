"""Model drafting: a smaller model with the same vocabulary says what a text may go on with."""

import time
import warnings
from bisect import bisect
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import accumulate, takewhile
from operator import mul
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from mistral_portable.drafts import NOTHING, Acceptance, Offer, StepCosts, best_lengths
from mistral_portable.engine.core import Core
from mistral_portable.engine.draft_lanes import Ahead, DraftLanes
from mistral_portable.engine.drafting import MOST_DRAFTED, MOST_TOKENS, most_drafted
from mistral_portable.engine.request import Completion
from mistral_portable.engine.suffix_drafting import SuffixOffers
from mistral_portable.errors import InputError
from mistral_portable.sampling import Sampler

__all__ = ["ModelDrafting"]

_CONFIDENCE = (0.2, 0.4, 0.6, 0.8, 0.95)  # of the draft model in a token: bounds of kinds
_FIRST = (0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0)  # their chances; the last kind is what a grammar forces
_FORCED = len(_FIRST) - 1
_USUAL = 0.7  # chance of a token of which nothing is known yet
_RETRY, _MOST_RETRY = 256, 1 << 14  # tokens without the model behind which it is tried again; longer each time
_CHEAP = 8  # tokens that it may read for each of those when it is tried
_ALONE, _BESIDE = 512, 64  # tokens of prompts that it reads in a step, and in one for which others wait
_PAUSE = 64  # steps without it, behind one in which it failed


class ModelDrafting:
    """Asks a draft model, and looks for what the text repeats (`SuffixOffers`): the better one of both is tried.

    The draft model draws its tokens with the sampler's own rules and random numbers, so that where both models agree on
    the probabilities they agree on the token. It says one token after another, as long as that pays: by the times of
    its steps and of those that try the tokens, and by how often tokens of which it is so sure were right.
    """

    def __init__(self, core: Core) -> None:
        """core: of the draft model, with a lane for each answer and one more for its draft."""
        self._lanes = DraftLanes(core)
        self._suffixes = SuffixOffers()
        self._costs = StepCosts(MOST_TOKENS)
        self._own_costs = StepCosts(MOST_TOKENS)
        self._learned = Acceptance(_FIRST)
        self._usual = Acceptance([_USUAL])
        self._said: WeakKeyDictionary[Completion, tuple[int, Offer]] = WeakKeyDictionary()
        self._pays = True
        self._idle = 0  # tokens since it did not pay
        self._retry = _RETRY
        self._paused = 0
        self._warned = False

    def read(self, completions: Sequence[Completion], *, alone: bool) -> None:
        """Look at the prompts, a part in each step, while they are read."""
        self._suffixes.read(completions)
        if self._pays and not self._paused:
            try:
                self._lanes.read(completions, _ALONE if alone else _BESIDE)
            except Exception as error:
                self._failed(error)

    def choose(self, completions: Sequence[Completion]) -> list[Sequence[int]]:
        """Return drafts that pay."""
        self._judge(completions)
        found = [self._suffixes.make(completion) for completion in completions]
        said = dict[int, Offer]()
        if self._paused:
            self._paused -= 1
        else:
            try:
                said = self._ask(completions, [chances for _, chances in found])
            except Exception as error:  # a draft is to save time, and never to cost an answer
                self._failed(error)
        for number, offer in said.items():
            chances = offer.chances(self._learned)
            self._said[completions[number]] = len(completions[number].tokens), offer
            if _expected(chances) > _expected(found[number][1]):
                found[number] = offer, chances
        lengths = best_lengths([chances for _, chances in found], self._costs.seconds())
        return [offer.tokens[:length] for (offer, _), length in zip(found, lengths, strict=True)]

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn what steps cost."""
        self._costs.observe(tokens, seconds)

    def forget(self, completion: Completion) -> None:
        """Drop the text, and give its lane back."""
        self._suffixes.forget(completion)
        self._said.pop(completion, None)
        self._lanes.forget(completion)

    def _judge(self, completions: Iterable[Completion]) -> None:
        """Learn from what came where the model had said something."""
        for completion in completions:
            length, offer = self._said.pop(completion, (0, NOTHING))
            came = completion.tokens[length:]
            offer.judge(came, self._learned)
            drawn = list(takewhile(lambda kind: kind != _FORCED, offer.kinds))
            Offer(offer.tokens[: len(drawn)], [0] * len(drawn)).judge(came, self._usual)
            if len(offer.tokens) > 1 and list(offer.tokens[:2]) == came[:2]:
                self._retry = _RETRY

    def _ask(self, completions: Sequence[Completion], repeated: Sequence[Sequence[float]]) -> dict[int, Offer]:
        """Let the draft model say what those texts go on with for which that pays, by their numbers.

        repeated: the chances of what each text repeats.
        """
        able = [number for number, some in enumerate(repeated) if self._may_ask(completions[number], some)]
        if not self._pays:
            able = self._retried(completions, able)
        asked = {number: _Draft(completions[number]) for number in able}
        lengths = self._plan(repeated, asked)
        fitting = {*self._lanes.fitting(completions[number] for number in able if lengths[number])}
        asked = {number: draft for number, draft in asked.items() if completions[number] in fitting}
        if not asked:
            if able and not any(lengths[number] for number in able) and self._costs.seconds()[len(completions)]:
                self._pays, self._idle = False, 0
            return {}
        texts = [completions[number] for number in asked]
        unread, most = list(map(self._lanes.unread, texts)), _ALONE if len(completions) == 1 else _BESIDE
        if sum(unread) > most + len(texts) * MOST_DRAFTED or max(unread) > self._lanes.max_chunk:
            self._lanes.read(texts, most)
            return {}
        with self._lanes.ahead(texts) as ahead:
            self._draft(ahead, sum(unread), repeated, asked)
        for draft in asked.values():
            if not draft.tokens:  # a grammar that allows none of what it says, say
                self._usual.observe(0, False)
        return {number: Offer(draft.tokens, draft.kinds) for number, draft in asked.items()}

    def _may_ask(self, completion: Completion, repeated: Sequence[float]) -> bool:
        if most_drafted(completion) < 1 or (repeated and repeated[0] >= self._usual.of(0)):
            return False
        return len(completion.tokens) + most_drafted(completion) <= self._lanes.max_context

    def _retried(self, completions: Sequence[Completion], able: Sequence[int]) -> list[int]:
        """Those of the texts about which the model, which did not pay, is asked again: behind a number of tokens, where
        it has little to read for that."""
        self._idle += len(completions)
        if self._idle < self._retry:
            return []
        cheap = [number for number in able if self._lanes.unread(completions[number]) <= _CHEAP * self._idle]
        if cheap:
            self._usual, self._pays = Acceptance([_USUAL]), True
            self._retry = min(2 * self._retry, _MOST_RETRY)
        return cheap

    def _draft(
        self, ahead: Ahead, unread: int, repeated: Sequence[Sequence[float]], asked: "dict[int, _Draft]"
    ) -> None:
        """Go on with all drafts together, each as long as it pays."""
        begin, tokens, rows = time.perf_counter(), unread, ahead.begin()
        drafts = list(asked.values())
        going = list(range(len(drafts)))
        while True:
            for text, row in zip(going, rows, strict=True):
                drafts[text].add(row)
            self._own_costs.observe(tokens, time.perf_counter() - begin)
            lengths = self._plan(repeated, asked)
            going = [
                text
                for text, (number, draft) in enumerate(asked.items())
                if text in going and not draft.ended and lengths[number] > len(draft.tokens)
            ]
            if not going:
                return
            new = [drafts[text].newest for text in going]
            begin, tokens = time.perf_counter(), sum(map(len, new))
            rows = ahead.go_on(going, new)

    def _plan(self, repeated: Sequence[Sequence[float]], asked: "dict[int, _Draft]") -> list[int]:
        """How many tokens of each text pay, those that the draft model is still to say included."""
        usual = self._usual.of(0)
        chances = [
            self._hoped(asked[number], usual) if number in asked else some for number, some in enumerate(repeated)
        ]
        seconds, own = self._costs.seconds(), self._own_costs.seconds()
        texts = max(1, len(asked))
        each = own[texts] / texts if texts < len(own) else 0.0
        drafted = len(repeated) + sum(len(draft.tokens) for draft in asked.values())
        return best_lengths(
            chances, [time and time + each * max(0, tokens - drafted) for tokens, time in enumerate(seconds)]
        )

    def _hoped(self, draft: "_Draft", usual: float) -> list[float]:
        """The chances of a draft's tokens, and of those that may follow them."""
        known = [self._learned.of(kind) for kind in draft.kinds]
        return known if draft.ended else known + [usual] * (draft.most - len(known))

    def _failed(self, error: Exception) -> None:
        """Go on without it for a while."""
        self._paused = _PAUSE
        if not self._warned:
            self._warned = True
            with suppress(Warning):  # where warnings are errors, they would be the answers'
                warnings.warn(f"the draft model: {error}; going on without it", stacklevel=2)


def _expected(chances: Iterable[float]) -> float:
    """The number of tokens of a draft that are probably right."""
    return float(sum(accumulate(chances, mul)))


class _Draft:
    """Tokens that the draft model has said behind a text."""

    def __init__(self, completion: Completion) -> None:
        self.tokens = list[int]()
        self.kinds = list[int]()
        self.most = most_drafted(completion)
        self.ended = False
        """Whether nothing more can be said."""
        self.newest: Sequence[int] = ()
        """Those that the draft model has not read."""
        self._completion = completion
        self._sampler: Sampler | None = None

    def add(self, row: NDArray[np.float32]) -> None:
        """Draw a token from the logits [vocab_size] behind the newest one, and take those that a grammar forces."""
        try:
            if self._sampler is None:
                self._sampler = self._completion.sampler.ahead()
            token = self._sampler.sample(row).token
            forced = [sampled.token for sampled in self._sampler.forced(max(0, self.most - len(self.tokens) - 1))]
        except InputError:  # a grammar that allows nothing here, say: whether it holds, the answer will show
            self.ended = True
            return
        highest = row.max()
        confidence = float(np.exp(row[token] - highest) / np.exp(row - highest).sum())
        self.newest = [token, *forced]
        self.tokens += self.newest
        self.kinds += [bisect(_CONFIDENCE, confidence), *[_FORCED] * len(forced)]
        self.ended = len(self.tokens) >= self.most or self.newest[-1] in self._completion.ends
