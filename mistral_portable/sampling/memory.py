"""Memory: what the rules of one answer know of its text."""

from collections.abc import Callable, Collection, Mapping
from copy import copy, deepcopy

import numpy as np
from numpy.typing import NDArray

from mistral_portable.sampling import bans, processors
from mistral_portable.sampling.dry import Dry
from mistral_portable.sampling.entropy import next_mu
from mistral_portable.sampling.history import History
from mistral_portable.sampling.params import SamplingParams
from mistral_portable.sampling.processors import Positions, Row
from mistral_portable.sampling.token_counts import TokenCounts

__all__ = ["Change", "Memory"]

Change = Callable[[Row], None]
"""Changes a row of logits [vocab] in place."""


class Memory:
    """Follows from the tokens of prompt and answer alone, so it is the same in any batch and with any drafts.

    mu: mirostat's bound for the next token. chance: the next token's random number for XTC, in [0, 1).
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: NDArray[np.int64],
        *,
        end_tokens: Collection[int],
        piece: Callable[[int], bytes] | None,
        chances: np.random.Generator | None,
    ) -> None:
        """prompt: ids [n]. end_tokens, piece: those of Sampler. chances: the numbers for XTC; None: it is off."""
        self.chosen = 0
        """Tokens of the answer."""
        self.mu = 2 * params.mirostat_tau
        self.chance = 0.0 if chances is None else chances.random()
        self._params = params
        self._chances = chances
        self._ends = np.array(sorted(end_tokens), np.int64)
        self._counts_all = _penalizes(params) and params.repeat_last_n < 0
        counts_prompt = self._counts_all and params.repetition_penalty != 1
        self._seen = TokenCounts(np.unique(prompt).tolist() if counts_prompt else ())
        self._generated = TokenCounts()
        self._keeps_text = _looks_back(params)
        self._counts_only = not (self._counts_all or self._keeps_text or params.mirostat or params.xtc_probability)
        self._text = History(prompt if self._keeps_text else ())
        self._dry = Dry(params, piece, self.text) if params.dry_multiplier else None
        self.bans = self._make_bans()
        """Functions that name the tokens which may not come next."""
        self.changes = self._make_changes()
        """The rules `penalties` and `dry`, if they are on."""

    def copy(self) -> "Memory":
        """Return another one that knows the same and goes on alone."""
        other = copy(self)
        other._chances = deepcopy(self._chances)
        other._seen, other._generated = self._seen.copy(), self._generated.copy()
        other._text = History(self._text.tokens)
        other._dry = None if self._dry is None else self._dry.copy()
        other.bans, other.changes = other._make_bans(), other._make_changes()
        return other

    @property
    def text(self) -> Positions:
        """Ids of prompt and answer [n]; none unless a rule looks at them."""
        return self._text.tokens

    def add(self, token: int, probability: float | np.float64) -> None:
        """Note that a token was chosen. probability: that it had among those that were left."""
        self.chosen += 1  # first: if Ctrl-C comes behind it, the engine sees that this token is lost
        if self._counts_only:
            return
        if self._counts_all:
            self._seen.add(token)
            self._generated.add(token)
        if self._dry is not None:
            self._dry.append(self.text, token)
        if self._keeps_text:
            self._text.append(token)
        if self._params.mirostat:
            self.mu = next_mu(self.mu, probability, self._params.mirostat_tau, self._params.mirostat_eta)
        if self._chances is not None:
            self.chance = self._chances.random()

    def _make_bans(self) -> list[Callable[[], Positions]]:
        p, ends, rules = self._params, self._ends, list[Callable[[], Positions]]()
        if p.min_tokens:
            rules.append(lambda: ends if self.chosen < p.min_tokens else ends[:0])
        if p.no_repeat_ngram_size:
            rules.append(lambda: bans.repeating(self.text, p.no_repeat_ngram_size))
        if p.bad_words_ids:
            words = bans.Words(p.bad_words_ids)
            rules.append(lambda: words.completing(self.text))
        return rules

    def _make_changes(self) -> Mapping[str, Change]:
        dry, rules = self._dry, dict[str, Change]()
        if _penalizes(self._params):
            rules["penalties"] = self._penalize
        if dry is not None:
            rules["dry"] = lambda row: dry.penalize(row, self.text)
        return rules

    def _penalize(self, row: Row) -> None:
        p, seen, generated, counts = self._params, self._seen.tokens, self._generated.tokens, self._generated.counts
        if p.repeat_last_n > 0:
            last = self.text[-p.repeat_last_n :]
            seen = np.unique(last)
            generated, counts = np.unique(last[max(0, last.size - self.chosen) :], return_counts=True)
        if p.repetition_penalty != 1:
            processors.repetition_penalty(row, seen, p.repetition_penalty)
        if p.frequency_penalty or p.presence_penalty:
            processors.frequency_presence_penalty(row, generated, counts, p.frequency_penalty, p.presence_penalty)


def _penalizes(params: SamplingParams) -> bool:
    on = params.repetition_penalty != 1 or params.frequency_penalty or params.presence_penalty
    return bool(on and params.repeat_last_n)


def _looks_back(params: SamplingParams) -> bool:
    """Whether a rule looks at the whole text."""
    rules = params.no_repeat_ngram_size or params.bad_words_ids or params.logits_processors or params.dry_multiplier
    return bool(rules or (_penalizes(params) and params.repeat_last_n > 0))
