"""Continues the rows of a batch one step of the model after another, where its logits, its cache or functions of the
caller's are part of the call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import CacheError
from mistral_portable.sampling import Sampler, SamplingParams
from mistral_portable.sampling.processors import log_softmax
from mistral_portable.transformers.batch import Batch
from mistral_portable.transformers.cache import Cache
from mistral_portable.transformers.decoder import Decoder, Outputs
from mistral_portable.transformers.generation import Column, of_row, rows_of
from mistral_portable.transformers.logits_rules import Prompt, Rule

__all__ = ["Logits", "Record", "Rules", "advance", "draw_rows", "newest", "normalized"]

Logits = NDArray[np.float32]


@dataclass
class Record:
    """A record of steps, for what a call asks for; None for what it does not.

    scores: [R, vocab] of each step, as tokens are chosen by them. logits: [R, vocab], as the model makes them. exposed:
    names of the other outputs. outputs: these, [R, T, ...] of each step, the prompt's first. Rows that have ended are
    0.
    """

    scores: list[Logits] | None = None
    logits: list[Logits] | None = None
    exposed: frozenset[str] = frozenset()
    outputs: list[Outputs] = field(default_factory=list)

    def add(self, logits: Logits, scores: Logits, outputs: Outputs) -> None:
        """Keep what is wanted of a step."""
        if self.scores is not None:
            self.scores.append(scores)
        if self.logits is not None:
            self.logits.append(logits)
        if self.exposed:
            self.outputs.append(outputs)


@dataclass(frozen=True)
class Rules:
    """The rules for the next tokens of a batch, in transformers' order.

    guidance: takes the padded ids [R, T] and logits [R, vocab], as `custom` does, which is the caller's. rows: rules of
    each row, which take ids without padding.
    """

    rows: Sequence[Sequence[Rule]]
    guidance: Callable[[NDArray[np.int64], Logits], Logits] | None = None
    custom: Callable[[NDArray[np.int64], Logits], Logits] | None = None

    def apply(self, ids: NDArray[np.int64], tokens: Sequence[Sequence[int] | None], logits: Logits) -> Logits:
        """Return the logits that the rules leave, another array [R, vocab].

        ids: prompts and answers so far, [R, T]. tokens: for each row its ids without padding; None: it has ended, and
        its own rules are left out.
        """
        made = logits.copy() if self.guidance is None else self.guidance(ids, logits)
        for row, known in enumerate(tokens):
            if known is not None:
                for rule in self.rows[row]:
                    made[row] = rule(known, made[row])
        return made if self.custom is None else self.custom(ids, made)


def advance(
    decoder: Decoder, batch: Batch, cache: Cache, exposed: frozenset[str] = frozenset()
) -> tuple[Logits, Outputs]:
    """Append a batch to a cache: the logits [B, vocab] behind each row's last token, 0 for rows without any, and the
    exposed outputs. Raises the errors of `Decoder.run`."""
    last = [int(columns[-1]) if len(columns) else 0 for columns in batch.columns]
    wanted = sorted(set(last))
    outputs = decoder.run(batch, cache, exposed, wanted)
    logits = outputs.pop("logits")
    return logits[np.arange(len(last)), np.searchsorted(wanted, last)], outputs


def newest(tokens: Sequence[int | None]) -> Batch:
    """A batch of one column: the next token of each row, or padding."""
    listed = [[] if token is None else [token] for token in tokens]
    return Batch((len(listed), 1), listed, [np.arange(len(some)) for some in listed])


def normalized(rows: Logits) -> Logits:
    """The logarithms of the softmax of each row [R, vocab]."""
    return np.stack([log_softmax(row).astype(np.float32) for row in rows])


def draw_rows(
    decoder: Decoder,
    batch: Batch,
    cache: Cache,
    ids: NDArray[np.int64],
    prompts: Sequence[Prompt],
    rules: Rules,
    params: SamplingParams,
    ends: Sequence[int],
    pad: int,
    record: Record,
    *,
    normalize: bool = False,
    column: Column | None = None,
) -> NDArray[np.int64]:
    """Generate as `continue_rows` does, in lanes of a cache, which then holds all columns but the last one.

    batch: what follows in the cache. ids: the padded prompts [B, T], for rules. normalize: whether scores are
    logarithms of probabilities. If it fails, the cache is as it was, or closed if a window has moved on.
    """
    before = cache.get_seq_length()
    try:
        return _draw(decoder, batch, cache, ids, prompts, rules, params, ends, pad, record, normalize, column)
    except BaseException:
        try:
            cache.crop(before)
        except CacheError:
            cache.close()
        raise


def _draw(
    decoder: Decoder,
    batch: Batch,
    cache: Cache,
    ids: NDArray[np.int64],
    prompts: Sequence[Prompt],
    rules: Rules,
    params: SamplingParams,
    ends: Sequence[int],
    pad: int,
    record: Record,
    normalize: bool,
    column: Column | None,
) -> NDArray[np.int64]:
    samplers = [Sampler(of_row(params, row)) for row in range(len(prompts))]
    answers = [list[int]() for _ in prompts]
    going = np.ones(len(prompts), np.bool_)
    while True:
        logits, outputs = advance(decoder, batch, cache, record.exposed)
        known = [[*prompt.tokens, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        left = rules.apply(ids, [some if goes_on else None for some, goes_on in zip(known, going, strict=True)], logits)
        record.add(logits, _scores(samplers, left, going, normalize) if record.scores is not None else left, outputs)
        chosen = [sampler.sample(left[row]).token if going[row] else None for row, sampler in enumerate(samplers)]
        for answer, token in zip(answers, chosen, strict=True):
            answer += () if token is None else (token,)
        tokens = np.array([pad if token is None else token for token in chosen], np.int64)
        ids = np.concatenate([ids, tokens[:, None]], axis=1)
        going = going & ~np.isin(tokens, np.array(ends, np.int64))
        if column is not None:
            going &= ~column(tokens, record.scores)
        going &= np.array([len(answer) < (params.max_tokens or 0) for answer in answers])
        if not going.any():
            return rows_of(answers, pad)
        batch = newest(chosen)  # also the last token of rows that have ended here: a chat may go on behind it


def _scores(samplers: Sequence[Sampler], rows: Logits, going: NDArray[np.bool_], normalize: bool) -> Logits:
    """The scores that tokens are drawn by, 0 for rows that have ended."""
    made = np.zeros_like(rows)
    for row in np.flatnonzero(going):
        scores: Any = samplers[row].scores(rows[row])
        made[row] = log_softmax(scores) if normalize else scores
    return made
