"""Beam search: keeps the likeliest texts of each prompt, in lanes that fork where two of them begin alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mistral_portable.sampling import Sampler, SamplingParams
from mistral_portable.sampling.processors import highest
from mistral_portable.transformers.cache import Cache
from mistral_portable.transformers.decoder import Decoder
from mistral_portable.transformers.generation import of_row
from mistral_portable.transformers.logits_rules import Prompt
from mistral_portable.transformers.stepwise import Logits, Record, Rules, advance, newest, normalized

__all__ = ["Beam", "Beams", "Ended", "search"]

Ended = Callable[[NDArray[np.int64], Any], NDArray[np.bool_]]
"""Takes padded ids of prompts and answers [N, T], and the scores so far or None; says which texts end there [N]."""


@dataclass(frozen=True)
class Beam:
    """A text of a search.

    tokens: of the answer. origins: for each of them the row of the batch, [prompts * width], whose logits it was chosen
    by. score: the sum of its tokens' log-probabilities; of a text that has ended, divided by length ** length_penalty.
    """

    tokens: tuple[int, ...]
    origins: tuple[int, ...]
    score: np.float32


class Beams:
    """The search behind one prompt: `width` texts that go on, and as many that have ended, both from the best on.

    It is over when no text that goes on can become better than the worst that has ended, or with `early_stopping=True`
    as soon as there are `width` of these. A text that goes on counts as if it ended here, or, with "never" and a
    positive length_penalty, after `most` tokens. Source: transformers' `_beam_search`.
    """

    def __init__(
        self,
        first_row: int,
        width: int,
        most: int,
        *,
        length_penalty: float,
        early_stopping: bool | Literal["never"],
        candidates: int,
    ) -> None:
        """first_row: its row of the batch; it has `width`. most: tokens of an answer. candidates: how many texts of one
        token more are looked at in each step."""
        self.running = [Beam((), (), np.float32(0))]
        self.ended = list[Beam]()
        self.over = False
        self._first, self._width, self._most = first_row, width, most
        self._penalty, self._early, self._count = length_penalty, early_stopping, candidates

    def candidates(self, log_probs: Logits, noise: NDArray[np.float64] | None) -> list[Beam]:
        """The best texts of one token more, the best first; log_probs: [texts that go on, vocab].

        noise: Gumbel noise of that shape: they are drawn without replacement (arXiv:1903.06059), by their probability.
        """
        sums = (log_probs + np.array([beam.score for beam in self.running], np.float32)[:, None]).ravel()
        keys = sums if noise is None else (sums + noise.ravel()).astype(np.float32)
        near = highest(keys, min(self._count, keys.size))
        chosen = near[(-keys[near]).argsort(kind="stable")[: self._count]]
        chosen = chosen[sums[chosen] > -np.inf]
        chosen = chosen[(-sums[chosen]).argsort(kind="stable")]
        found = list[Beam]()
        for place in chosen.tolist():
            parent, token = divmod(place, log_probs.shape[1])
            beam = self.running[parent]
            found.append(Beam((*beam.tokens, token), (*beam.origins, self._first + parent), sums[place]))
        return found

    def choose(self, candidates: Sequence[Beam], ended: Sequence[bool]) -> None:
        """Go on with the best candidates, and keep those that have ended, if they are among the `width` best."""
        rated = [
            Beam(beam.tokens, beam.origins, np.float32(beam.score / np.float32(len(beam.tokens) ** self._penalty)))
            for beam, over in zip(candidates[: self._width], ended, strict=False)
            if over
        ]
        self.ended = sorted([*self.ended, *rated], key=lambda beam: -beam.score)[: self._width]
        self.running = [beam for beam, over in zip(candidates, ended, strict=True) if not over][: self._width]
        self.over = not self.running or (len(self.ended) == self._width and not self._may_improve())

    def best(self, count: int) -> list[Beam]:
        """The best texts, those that have not ended last; as many as there are, up to `count`."""
        return [*self.ended, *self.running][:count]

    def _may_improve(self) -> bool:
        if self._early is True:
            return False
        length = self._most if self._early == "never" and self._penalty > 0 else len(self.running[0].tokens)
        return bool(self.running[0].score / np.float32(length**self._penalty) > self.ended[-1].score)


def search(
    decoder: Decoder,
    logits: Logits,
    cache: Cache,
    ids: NDArray[np.int64],
    prompts: Sequence[Prompt],
    rules: Rules,
    params: SamplingParams,
    searches: Sequence[Beams],
    width: int,
    ended: Ended,
    record: Record,
    outputs: dict[str, NDArray[np.float32]],
    *,
    draws: bool,
    least_kept: int,
    normalize: bool,
) -> None:
    """Run the searches to their end, together.

    logits, outputs: of the prompts, a row for each of the `width` of each search: [prompts * width, ...]. cache: with
    as many rows, which are reordered. ids: the padded prompts [prompts, T]. prompts: of the searches. draws: whether
    the next tokens are drawn, by the rules of `params`, which keep at least `least_kept` tokens.
    """
    random = [np.random.Generator(np.random.PCG64(of_row(params, prompt.row).seed)) for prompt in prompts]
    filters = Sampler(params)
    rows = len(searches) * width
    while True:
        padded, known = np.repeat(ids, width, axis=0), list[list[int] | None]([None] * rows)
        made = len(next(one.running[0].tokens for one in searches if not one.over))
        padded = np.concatenate([padded, np.zeros((rows, made), np.int64)], axis=1)
        for number, one in enumerate(searches):
            for place, beam in enumerate(() if one.over else one.running):
                padded[number * width + place, ids.shape[1] :] = beam.tokens
                known[number * width + place] = [*prompts[number].tokens, *beam.tokens]
        log_probs = rules.apply(padded, known, normalized(logits))
        if draws:
            log_probs = np.stack([_filtered(filters, row, least_kept) for row in log_probs])
        if normalize:
            log_probs = normalized(log_probs)
        record.add(logits, log_probs, outputs)
        tokens, parents = list[int | None]([None] * rows), list(range(rows))
        for number, one in enumerate(searches):
            if one.over:
                continue
            own = log_probs[number * width :][: len(one.running)]
            noise = random[number].gumbel(size=own.shape) if draws else None
            found = one.candidates(own, noise)
            texts = np.array([[*ids[number].tolist(), *beam.tokens] for beam in found], np.int64)
            one.choose(found, ended(texts, record.scores).tolist() if found else [])
            for place, beam in enumerate(() if one.over else one.running):
                tokens[number * width + place] = beam.tokens[-1]
                parents[number * width + place] = beam.origins[-1]
        if all(one.over for one in searches):
            return
        cache.reorder_cache(parents)
        logits, outputs = advance(decoder, newest(tokens), cache, record.exposed)


def _filtered(filters: Sampler, row: Logits, least: int) -> Logits:
    """The scores that temperature and filters leave, and those of the `least` likeliest tokens."""
    made = filters.scores(row)
    best = highest(row, min(least, row.size))
    made[best] = row[best].astype(np.float64) / (filters.params.temperature or 1)
    return made
