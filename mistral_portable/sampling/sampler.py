"""Sampler: chooses the next token of one sequence from a row of logits."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError, NumericsError
from mistral_portable.sampling import processors
from mistral_portable.sampling.logits_processor import processed
from mistral_portable.sampling.params import SamplingParams
from mistral_portable.sampling.processors import Positions, Row
from mistral_portable.sampling.scratch import scratch
from mistral_portable.sampling.token_counts import TokenCounts

__all__ = ["Sampled", "Sampler", "TokenLogprob"]


_BLOCK = 256  # of probabilities that are added up together


class TokenLogprob(NamedTuple):
    """A token id and the natural logarithm of its probability."""

    token: int
    logprob: float


class Sampled(NamedTuple):
    """The chosen token; with `SamplingParams.logprobs=n`, its log-probability and the n most likely tokens.

    Log-probabilities are those of the model, a float64 log-softmax of the logits before any rule (vLLM's
    `raw_logprobs`). `top_logprobs` is ordered from the most likely, lower ids first on ties.
    """

    token: int
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()


class Sampler:
    """One per sequence: holds its random stream and what it has seen, so that penalties know.

    A draw takes one uniform number u from PCG64(seed) and returns the first token, in id order, at which the
    cumulative float64 probability exceeds u: with probabilities 0.2, 0.5, 0.3 and u = 0.4 that is token 1.
    Each token of an answer takes one number, even if only one is left, and greedy choices take none: token i is drawn
    with number i. So the same seed and logits give the same tokens on every backend, and logits that differ by rounding
    almost always do.

    With a grammar, tokens that it does not allow have the logit -inf before the temperature. `sample` chooses among the
    others, and then `forced` takes those that need no logits, as the grammar leaves one alone.
    """

    def __init__(self, params: SamplingParams, *, prompt_tokens: Sequence[int] = ()) -> None:
        self.params = params
        self.chosen = 0
        """The number of tokens that penalties and grammar know, or are about to learn of."""
        self._prompt = np.asarray(prompt_tokens, dtype=np.int64)
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._vocab_size = 0  # the first row tells it
        self._seen = TokenCounts(np.unique(self._prompt).tolist() if params.repetition_penalty != 1 else ())
        self._generated = TokenCounts()
        self._tokens = self._prompt.tolist() if params.logits_processors else []
        self._constraint = None if params.grammar is None else params.grammar.begin(prompt_tokens)
        self._penalties = self._make_penalties()
        self._filters = self._make_filters()
        self._changes_logits = bool(self._penalties or params.logits_processors or params.grammar is not None)

    def sample(self, logits: Row) -> Sampled:
        """Choose a token from float32 logits [vocab] and remember it for the penalties.

        Raises NumericsError for logits with NaN or +inf, or with -inf alone; InputError for logits of another shape or
        dtype or in which `logit_bias` or the grammar leaves no token, at the first row also for ids of the prompt or
        the parameters outside the vocabulary; what `logits_processors` raise.
        """
        row, best = self._penalized(logits)
        token = int(best)
        if self.params.temperature != 0:
            tokens, left = self._filtered(row)
            drawn = _drawn(processors.softmax(left, scratch(left.size, np.float64)), self._random.random())
            token = drawn if tokens is None else int(tokens[drawn])
        self._remember(token)
        if self.params.logprobs is None:
            return Sampled(token)
        return _with_logprobs(token, logits, self.params.logprobs)

    def forced(self, most: int) -> list[Sampled]:
        """Take the next tokens, up to `most`, as long as the grammar leaves one alone: `sample` would choose the same.

        Each takes its random number, so what is drawn later is the same as if `sample` had chosen it. None of them if
        log-probabilities are wanted, for which there must be logits. Raises InputError if the grammar fails.
        """
        taken = list[Sampled]()
        while len(taken) < most and (token := self._only_token()) is not None:
            if self.params.temperature != 0:
                self._random.random()
            self._remember(token)
            taken.append(Sampled(token))
        return taken

    def distribution(self, logits: Row) -> tuple[Positions, NDArray[np.float64]]:
        """Return what `sample` draws from: token ids [n] in rising order, their probabilities float64 [n]."""
        row, best = self._penalized(logits)
        if self.params.temperature == 0:
            return np.array([best]), np.ones(1)
        tokens, left = self._filtered(row)
        return np.arange(row.size) if tokens is None else tokens, processors.softmax(left)

    def scores(self, logits: Row) -> Row:
        """Return the logits that `sample` chooses by, float32 [vocab]: behind all rules, divided by the temperature,
        -inf for tokens that a filter removes. Nothing is drawn. Raises the errors of `sample`."""
        row, _ = self._penalized(logits)
        if self.params.temperature == 0:
            return row.copy()
        tokens, _ = self._filtered(row)
        left = slice(None) if tokens is None else tokens
        made = np.full(row.size, -np.inf, np.float32)
        made[left] = row[left].astype(np.float64) / self.params.temperature
        return made

    def _penalized(self, logits: Row) -> tuple[Row, np.intp]:
        """Return the row after all rules but filters, in the thread's scratch memory, and where its first maximum is.

        Raises the errors of `sample`.
        """
        if logits.ndim != 1 or logits.dtype != np.float32 or not logits.size:
            raise InputError(f"logits are {logits.dtype} {list(logits.shape)}: pass one float32 row [vocab]")
        if logits.size != self._vocab_size:
            self._begin(logits.size)
        row = logits
        if self._changes_logits:
            row = scratch(logits.size, np.float32)
            row[:] = logits
        for penalize in self._penalties:
            penalize(row)
        best = row.argmax()  # NaN counts as the maximum, so this one entry tells whether the row is sound
        if not math.isfinite(row[best]):
            raise _unsound(row[best], best, bool(self.params.logit_bias))
        if self.params.logits_processors:
            best = processed(row, tuple(self._tokens), self.params.logits_processors)
        if self._constraint is not None:
            allowed = self._constraint.allowed()[: row.size]
            np.copyto(row[: allowed.size], -np.inf, where=~allowed)
            row[allowed.size :] = -np.inf
            best = row.argmax()
            if row[best] == -np.inf:
                raise InputError("every token that the grammar allows has the logit -inf: ban fewer")
        return row, best

    def _only_token(self) -> int | None:
        """Return the token that `sample` would choose whatever the logits are, if there is one."""
        if self._constraint is None or self.params.logprobs is not None or self.params.logits_processors:
            return None
        token = self._constraint.forced
        if token is None or token >= self._vocab_size or self.params.logit_bias.get(token) == -math.inf:
            return None
        return token

    def _remember(self, token: int) -> None:
        """Note for penalties and grammar that a token was chosen."""
        self.chosen += 1
        if self._penalties:
            self._seen.add(token)
            self._generated.add(token)
        if self.params.logits_processors:
            self._tokens.append(token)
        if self._constraint is not None:
            self._constraint.accept(token)

    def _filtered(self, row: Row) -> tuple[Positions | None, Row]:
        """Return the ids of the tokens that temperature and filters leave, None for all, and their logits."""
        p = self.params
        tokens, left = processors.temperature_top_k(row, p.temperature, p.top_k, scratch(row.size, np.float32))
        for keep in self._filters:
            kept = keep(left)
            if kept is not None:
                left = left[kept]
                tokens = kept if tokens is None else tokens[kept]
        return tokens, left

    def _begin(self, vocab_size: int) -> None:
        if self._vocab_size:
            raise InputError(f"logits have {vocab_size} entries, but the rows before had {self._vocab_size}")
        self.params.check_vocab(vocab_size)
        outside = self._prompt[(self._prompt < 0) | (self._prompt >= vocab_size)]
        if outside.size:
            raise InputError(f"prompt: token id {outside[0]} must be in 0..{vocab_size - 1} (vocabulary)")
        self._vocab_size = vocab_size

    def _make_penalties(self) -> list[Callable[[Row], None]]:
        p, rules = self.params, list[Callable[[Row], None]]()
        if p.logit_bias:
            tokens = np.array(list(p.logit_bias), dtype=np.int64)
            biases = np.array(list(p.logit_bias.values()), dtype=np.float32)
            rules.append(lambda row: processors.logit_bias(row, tokens, biases))
        if p.repetition_penalty != 1:
            rules.append(lambda row: processors.repetition_penalty(row, self._seen.tokens, p.repetition_penalty))
        if p.frequency_penalty or p.presence_penalty:
            rules.append(
                lambda row: processors.frequency_presence_penalty(
                    row, self._generated.tokens, self._generated.counts, p.frequency_penalty, p.presence_penalty
                )
            )
        return rules

    def _make_filters(self) -> list[Callable[[Row], Positions | None]]:
        p = self.params
        rules: list[Callable[[Row], Positions | None]] = [processors.finite]
        if p.top_p < 1:
            rules.append(lambda logits: processors.top_p(logits, p.top_p))
        if p.min_p:
            rules.append(lambda logits: processors.min_p(logits, p.min_p))
        if p.typical_p < 1:
            rules.append(lambda logits: processors.typical_p(logits, p.typical_p))
        if p.epsilon_cutoff:
            rules.append(lambda logits: processors.epsilon_cutoff(logits, p.epsilon_cutoff))
        if p.eta_cutoff:
            rules.append(lambda logits: processors.eta_cutoff(logits, p.eta_cutoff))
        return rules


def _drawn(probabilities: NDArray[np.float64], u: float) -> int:
    """The first index at which the cumulative sum exceeds u of the total; 0 <= u < 1.

    First the block with it, by the sums of all blocks, then the place in that: numbers added up one after the other
    wait for each other. 131072 of them took 0.29 ms so, and take 0.04 ms (Xeon).
    """
    ends = np.add.reduceat(probabilities, np.arange(0, probabilities.size, _BLOCK)).cumsum()
    wanted = u * ends[-1]  # rounds to less than the total
    block = int(ends.searchsorted(wanted, side="right"))
    inside = probabilities[block * _BLOCK : (block + 1) * _BLOCK]
    sums = inside.cumsum()
    if block:
        sums += ends[block - 1]
    index = int(sums.searchsorted(wanted, side="right"))
    # The block's own sum may have been rounded up a little further; a token of probability 0 is never hit.
    if index == inside.size:
        index = int(inside.nonzero()[0][-1])
    return block * _BLOCK + index


def _with_logprobs(token: int, logits: Row, n: int) -> Sampled:
    tokens = np.array([token])
    if n:
        candidates = processors.highest(logits, n)
        best = candidates[(-logits[candidates]).argsort(kind="stable")[:n]]
        tokens = np.concatenate([tokens, best])
    logprob, *top = processors.log_softmax(logits, tokens).tolist()
    return Sampled(token, logprob, tuple(map(TokenLogprob, tokens[1:].tolist(), top)))


def _unsound(value: np.float32, token: np.intp, banned: bool) -> InputError | NumericsError:
    if value == -np.inf and banned:
        return InputError("every logit is -inf, no token is left to sample: ban fewer tokens in logit_bias")
    return NumericsError(
        f"the logit of token {token} is {value}: the weights are corrupt or the dtype overflowed; "
        "try float32, another backend, or `mistral-portable verify`"
    )
