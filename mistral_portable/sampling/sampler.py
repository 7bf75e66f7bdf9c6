"""Sampler: chooses the next token of one sequence from a row of logits."""

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError, NumericsError
from mistral_portable.sampling import processors
from mistral_portable.sampling.logits_processor import processed
from mistral_portable.sampling.memory import Change, Memory
from mistral_portable.sampling.order import split_order, steps
from mistral_portable.sampling.params import SamplingParams
from mistral_portable.sampling.processors import Positions, Row
from mistral_portable.sampling.scratch import scratch

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
    with number i. XTC decides with number i of another stream, PCG64(seed).jumped(). So the same seed
    and logits give the same tokens on every backend, and logits that differ by rounding almost always do.

    With a grammar, tokens that it does not allow have the logit -inf before the temperature. `sample` chooses among the
    others, and then `forced` takes those that need no logits, as the grammar leaves one alone.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt_tokens: Sequence[int] = (),
        end_tokens: Collection[int] = (),
        piece: Callable[[int], bytes] | None = None,
    ) -> None:
        """end_tokens: ids that end the answer, none of which is one of its first `min_tokens`. piece: returns the bytes
        of a token, of any id; None: there is no tokenizer. Raises InputError if `dry_sequence_breakers` need one."""
        self.params = params
        self._prompt = np.asarray(prompt_tokens, dtype=np.int64)
        random = np.random.PCG64(params.seed)
        self._random = np.random.Generator(random)
        self._numbers = deque[float]()  # of the next draws, which `number` has told
        chances = np.random.Generator(random.jumped()) if params.xtc_probability else None
        self._vocab_size = 0  # the first row tells it
        self._memory = Memory(params, self._prompt, end_tokens=end_tokens, piece=piece, chances=chances)
        self._constraint = None if params.grammar is None else params.grammar.begin(prompt_tokens)
        self._make_rules()

    @property
    def chosen(self) -> int:
        """The number of tokens that rules and grammar know, or are about to learn of."""
        return self._memory.chosen

    def sample(self, logits: Row) -> Sampled:
        """Choose a token from float32 logits [vocab] and remember it for the penalties.

        Raises NumericsError for logits with NaN or +inf, or with -inf alone; InputError for logits of another shape or
        dtype or in which `logit_bias` or the grammar leaves no token, at the first row also for ids of the prompt or
        the parameters outside the vocabulary; what `logits_processors` raise.
        """
        row, best = self._changed(logits)
        if self.params.temperature == 0:
            token = int(best)
            self._remember(token, 1.0)
        else:
            tokens, left = self._left(row)
            probabilities = processors.softmax(left, scratch(left.size, np.float64))
            drawn = _drawn(probabilities, self._next_number())
            token = drawn if tokens is None else int(tokens[drawn])
            self._remember(token, probabilities[drawn])
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
                self._next_number()
            self._remember(token, 1.0)
            taken.append(Sampled(token))
        return taken

    def number(self, ahead: int = 0) -> float:
        """Return the random number with which the next token is drawn, or one of those behind it; none is taken."""
        while len(self._numbers) <= ahead:
            self._numbers.append(self._random.random())
        return self._numbers[ahead]

    def drawn(self, token: int) -> Sampled:
        """Note that a device has drawn the next token with its number, as `sample` would; for `params.is_drawn`."""
        self._next_number()
        self._remember(token, 1.0)
        return Sampled(token)

    def ahead(self) -> "Sampler":
        """Return another one that will choose what this one would, and changes nothing of it: to guess what comes.

        It makes no log-probabilities, and does not ask `logits_processors`, which are the caller's and may remember.
        Raises InputError if the grammar fails.
        """
        other = copy(self)
        if self.params.logprobs is not None or self.params.logits_processors:
            other.params = replace(self.params, logprobs=None, logits_processors=())
        other._random, other._numbers = deepcopy(self._random), self._numbers.copy()
        other._memory = self._memory.copy()
        other._constraint = None if self._constraint is None else self._constraint.copy()
        other._make_rules()
        return other

    def distribution(self, logits: Row) -> tuple[Positions, NDArray[np.float64]]:
        """Return what `sample` draws from: token ids [n] in rising order, their probabilities float64 [n]."""
        row, best = self._changed(logits)
        if self.params.temperature == 0:
            return np.array([best]), np.ones(1)
        tokens, left = self._left(row)
        return np.arange(row.size) if tokens is None else tokens, processors.softmax(left)

    def scores(self, logits: Row) -> Row:
        """Return the logits that `sample` chooses by, float32 [vocab], for rules in the usual order: divided by the
        temperature, -inf for tokens that a rule removes. Nothing is drawn. Raises the errors of `sample`."""
        row, _ = self._changed(logits)
        if self.params.temperature == 0:
            return row.copy()
        tokens, _ = self._left(row)
        left = slice(None) if tokens is None else tokens
        made = np.full(row.size, -np.inf, np.float32)
        made[left] = row[left].astype(np.float64) / self.params.temperature
        return made

    def _changed(self, logits: Row) -> tuple[Row, np.intp]:
        """Return the row behind the rules for whole rows, in scratch memory if there are any, and where its maximum is.

        Raises the errors of `sample`.
        """
        if logits.ndim != 1 or logits.dtype != np.float32 or not logits.size:
            raise InputError(f"logits are {logits.dtype} {list(logits.shape)}: pass one float32 row [vocab]")
        if logits.size != self._vocab_size:
            self._begin(logits.size)
        row = logits
        if not self._is_raw:
            row = scratch(logits.size, np.float32)
            row[:] = logits
        for change in self._changes:
            change(row)
        best = row.argmax()  # NaN counts as the maximum, so this one entry tells whether the row is sound
        if not math.isfinite(row[best]):
            raise _unsound(row[best], best, bool(self.params.logit_bias))
        return row, self._restricted(row) if self._restricts else best

    def _restricted(self, row: Row) -> np.intp:
        """Ban what may not come next and apply the caller's own rules, in place; return where the maximum is."""
        for ban in self._memory.bans:
            banned = ban()
            row[banned[banned < row.size]] = -np.inf
        best = row.argmax()
        if row[best] == -np.inf:
            raise InputError("no token is left: min_tokens, no_repeat_ngram_size or bad_words_ids ban too many")
        if self.params.logits_processors:
            best = processed(row, tuple(self._memory.text.tolist()), self.params.logits_processors)
        if self._constraint is not None:
            allowed = self._constraint.allowed()[: row.size]
            np.copyto(row[: allowed.size], -np.inf, where=~allowed)
            row[allowed.size :] = -np.inf
            best = row.argmax()
            if row[best] == -np.inf:
                raise InputError("every token that the grammar allows has the logit -inf: ban fewer")
        return best

    def _make_rules(self) -> None:
        params, changes = self.params, self._memory.changes
        first, behind = split_order(params)
        self._changes = [*_bias(params), *(changes[name] for name in first if name in changes)]
        self._steps = steps(params, behind, self._memory, lambda: self._vocab_size)
        self._restricts = bool(self._memory.bans or params.logits_processors or self._constraint is not None)
        self._is_raw = not (self._changes or self._restricts)

    def _next_number(self) -> float:
        return self._numbers.popleft() if self._numbers else self._random.random()

    def _only_token(self) -> int | None:
        """Return the token that `sample` would choose whatever the logits are, if there is one."""
        if self._constraint is None or self.params.logprobs is not None or self.params.logits_processors:
            return None
        token = self._constraint.forced
        if token is None or token >= self._vocab_size or self._is_banned(token):
            return None
        return token

    def _is_banned(self, token: int) -> bool:
        return self.params.logit_bias.get(token) == -math.inf or any(token in ban() for ban in self._memory.bans)

    def _remember(self, token: int, probability: float | np.float64) -> None:
        """Note for rules and grammar that a token was chosen, with this probability."""
        self._memory.add(token, probability)
        if self._constraint is not None:
            self._constraint.accept(token)

    def _left(self, row: Row) -> tuple[Positions | None, Row]:
        """Return the ids of the tokens that the rules behind leave, None for all, and their logits."""
        tokens: Positions | None = None
        for step in self._steps:
            tokens, row = step(tokens, row)
        return tokens, row

    def _begin(self, vocab_size: int) -> None:
        if self._vocab_size:
            raise InputError(f"logits have {vocab_size} entries, but the rows before had {self._vocab_size}")
        self.params.check_vocab(vocab_size)
        outside = self._prompt[(self._prompt < 0) | (self._prompt >= vocab_size)]
        if outside.size:
            raise InputError(f"prompt: token id {outside[0]} must be in 0..{vocab_size - 1} (vocabulary)")
        self._vocab_size = vocab_size


def _bias(params: SamplingParams) -> list[Change]:
    if not params.logit_bias:
        return []
    tokens = np.array(list(params.logit_bias), dtype=np.int64)
    biases = np.array(list(params.logit_bias.values()), dtype=np.float32)
    return [lambda row: processors.logit_bias(row, tokens, biases)]


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
