"""Rules for the next token of one row under transformers' names, in the order of its `generate`.

A rule takes the ids so far, without padding, and the logits float32 [vocab], and returns logits, the same array or
another one; -inf bans a token. Rules hold nothing of an answer, so the beams of a search may share them.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mistral_portable.errors import InputError
from mistral_portable.sampling.processors import Row
from mistral_portable.sampling.processors import repetition_penalty as penalize
from mistral_portable.transformers.checks import is_given, number, shown, token_ids, whole_number
from mistral_portable.transformers.generation_config import GenerationConfig

__all__ = ["Prompt", "Rule", "logits_rules"]

Rule = Callable[[Sequence[int], Row], Row]

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Prompt:
    """A row's prompt, as rules know it.

    tokens: its ids without padding, none if it was embeddings. columns: its width in the batch, padding included, 0 if
    it was embeddings: what lengths count. ids: the padded ids [columns]. row: of the batch that the caller gave.
    """

    tokens: Sequence[int]
    columns: int
    ids: Sequence[int]
    row: int

    def new(self, tokens: Sequence[int]) -> int:
        """How many of these ids are the answer's."""
        return len(tokens) - len(self.tokens)


def logits_rules(
    config: GenerationConfig,
    prompt: Prompt,
    *,
    ends: Collection[int],
    most: int,
    vocab_size: int,
    allowed: Callable[[int, Sequence[int]], Any] | None = None,
) -> list[Rule]:
    """The rules that a config asks for, for one row.

    ends: ids that end a text. most: tokens of an answer. allowed: `prefix_allowed_tokens_fn`, which is given the number
    of the prompt and its padded ids with the answer so far.

    Source of the order: transformers' `_get_logits_processor`. Raises InputError for values that do not fit.
    """
    rules = list[Rule]()

    def add(name: str, rule: Rule) -> None:
        setattr(rule, "__name__", name)  # noqa: B010  # for messages; Callable has no such attribute for mypy
        rules.append(rule)

    ending = [end for end in ends if 0 <= end < vocab_size]
    if is_given(config.sequence_bias):
        add("sequence_bias", biased(_sequence_biases(config.sequence_bias, vocab_size)))
    if (against := _penalty("encoder_repetition_penalty", config)) != 1 and prompt.tokens:
        add("encoder_repetition_penalty", lambda _, row: repetition_penalty(prompt.tokens, row, 1 / against))
    if (penalty := _penalty("repetition_penalty", config)) != 1:
        add("repetition_penalty", lambda tokens, row: repetition_penalty(tokens, row, penalty))
    if size := whole_number("no_repeat_ngram_size", config.no_repeat_ngram_size):
        add("no_repeat_ngram_size", lambda tokens, row: banned(row, continuations(tokens, tokens, size)))
    if (other := whole_number("encoder_no_repeat_ngram_size", config.encoder_no_repeat_ngram_size)) and prompt.tokens:
        add(
            "encoder_no_repeat_ngram_size",
            lambda tokens, row: banned(row, continuations(prompt.tokens, tokens, other)),
        )
    if is_given(config.bad_words_ids):
        words = _words("bad_words_ids", config.bad_words_ids, vocab_size)
        add("bad_words_ids", biased({word: -math.inf for word in words if word not in {(end,) for end in ends}}))
    least = whole_number("min_length", config.min_length) - prompt.columns
    if config.min_new_tokens is not None:
        least = whole_number("min_new_tokens", config.min_new_tokens)
    if least > 0 and ending:
        add("min_new_tokens", lambda tokens, row: banned(row, ending) if prompt.new(tokens) < least else row)
    if allowed is not None:
        add(
            "prefix_allowed_tokens_fn",
            lambda tokens, row: only(row, allowed(prompt.row, [*prompt.ids, *tokens[len(prompt.tokens) :]])),
        )
    if first := token_ids("forced_bos_token_id", config.forced_bos_token_id, vocab_size):
        add(
            "forced_bos_token_id",
            lambda tokens, row: forced(row, first) if prompt.columns + prompt.new(tokens) == 1 else row,
        )
    if last := token_ids("forced_eos_token_id", config.forced_eos_token_id, vocab_size):
        add("forced_eos_token_id", lambda tokens, row: forced(row, last) if prompt.new(tokens) == most - 1 else row)
    if config.remove_invalid_values:
        add("remove_invalid_values", lambda _, row: np.nan_to_num(row, posinf=_LARGEST, neginf=-_LARGEST))
    if config.exponential_decay_length_penalty is not None:
        begin, factor = _decay(config.exponential_decay_length_penalty)
        add(
            "exponential_decay_length_penalty",
            lambda tokens, row: lengthened(row, ending, factor, prompt.new(tokens) - begin),
        )
    if never := token_ids("suppress_tokens", config.suppress_tokens, vocab_size):
        add("suppress_tokens", lambda _, row: banned(row, never))
    if at_first := token_ids("begin_suppress_tokens", config.begin_suppress_tokens, vocab_size):
        begins = int(prompt.columns <= 1 and bool(first))
        add(
            "begin_suppress_tokens",
            lambda tokens, row: banned(row, at_first) if prompt.new(tokens) == begins else row,
        )
    return rules


def repetition_penalty(seen: Sequence[int], row: Row, penalty: float) -> Row:
    """Make tokens that have been seen less likely, if the penalty is above 1.

    >>> repetition_penalty([0, 1, 0], np.float32([4, -4, 4]), 2.0)
    array([ 2., -8.,  4.], dtype=float32)
    """
    penalize(row, np.unique(np.asarray(seen, np.int64)), penalty)
    return row


def banned(row: Row, tokens: Collection[int]) -> Row:
    """Ban tokens.

    >>> banned(np.float32([1, 2, 3]), [0])
    array([-inf,   2.,   3.], dtype=float32)
    """
    row[list(tokens)] = -math.inf
    return row


def forced(row: Row, tokens: Sequence[int]) -> Row:
    """Ban all tokens but these, which become equally likely.

    >>> forced(np.float32([1, 2, 3]), [0, 2])
    array([  0., -inf,   0.], dtype=float32)
    """
    row[:] = -math.inf
    row[list(tokens)] = 0
    return row


def only(row: Row, tokens: Any) -> Row:
    """Ban all tokens but these; if others have banned them all, they become equally likely.

    >>> only(np.float32([1, 2, -np.inf]), [0, 2]), only(np.float32([1, 2, -np.inf]), [2])
    (array([  1., -inf, -inf], dtype=float32), array([-inf, -inf,   0.], dtype=float32))

    Raises InputError for no tokens at all, and for ids outside the vocabulary.
    """
    kept = token_ids("prefix_allowed_tokens_fn", tokens, row.size)
    if not kept:
        raise InputError("prefix_allowed_tokens_fn has returned no ids: return at least one")
    made = forced(np.empty_like(row), kept)
    sums = row + made
    return sums if np.any(sums > -math.inf) else made


def continuations(text: Sequence[int], tokens: Sequence[int], size: int) -> set[int]:
    """The tokens that have come in `text` behind the last size - 1 of `tokens`: each would repeat an n-gram.

    >>> continuations([1, 2, 3, 1, 2], [1, 2, 3, 1, 2], 3)
    {3}
    """
    if len(tokens) < size - 1 or len(text) < size:
        return set()
    ids, end = np.asarray(text, np.int64), tuple(tokens[len(tokens) - size + 1 :])
    found = np.ones(len(text) - size + 1, np.bool_)
    for place, token in enumerate(end):
        found &= ids[place : place + found.size] == token
    return set(ids[size - 1 :][found].tolist())


def biased(sequences: Mapping[tuple[int, ...], float]) -> Rule:
    """A rule that adds a bias to the last token of each sequence where the text ends with those before it.

    >>> biased({(2,): 1.0, (7, 0): -np.inf})([5, 7], np.float32([1, 2, 3]))
    array([-inf,   2.,   4.], dtype=float32)
    """
    by_length: dict[int, dict[tuple[int, ...], list[tuple[int, float]]]] = {}
    for (*before, last), bias in sequences.items():
        by_length.setdefault(len(before), {}).setdefault(tuple(before), []).append((last, bias))

    def rule(tokens: Sequence[int], row: Row) -> Row:
        biases = np.zeros_like(row)
        for length, behind in by_length.items():
            for token, bias in behind.get(tuple(tokens[len(tokens) - length :]), ()) if length <= len(tokens) else ():
                biases[token] += np.float32(bias)
        row += biases
        return row

    return rule


def lengthened(row: Row, ends: Sequence[int], factor: float, behind: int) -> Row:
    """Raise the logits of end tokens by `abs(logit) * (factor ** behind - 1)`, `behind` tokens after a length.

    >>> lengthened(np.float32([-1, 2, 3]), [0, 1], 2.0, 1)
    array([0., 4., 3.], dtype=float32)
    """
    if behind > 0:
        raised = [end for end in ends if np.isfinite(row[end])]
        row[raised] += np.abs(row[raised]) * np.float32(factor**behind - 1)
    return row


def _penalty(name: str, config: GenerationConfig) -> float:
    value = getattr(config, name)
    return 1.0 if value is None else number(name, value, above=0)


def _words(name: str, value: Any, vocab_size: int) -> list[tuple[int, ...]]:
    if not isinstance(value, list | tuple) or not all(isinstance(word, list | tuple) and word for word in value):
        raise InputError(f"{name}={shown(value)} must be a list of lists of token ids")
    return [tuple(token_ids(name, word, vocab_size)) for word in value]


def _sequence_biases(value: Any, vocab_size: int) -> dict[tuple[int, ...], float]:
    """The biases by their sequences, from a dictionary by tuples or a list of [ids, bias]."""
    try:
        pairs = list(value.items()) if isinstance(value, Mapping) else [(ids, bias) for ids, bias in value]
        biases = [float(bias) for _, bias in pairs]
        sequences = [tuple(ids) for ids, _ in pairs]
    except (TypeError, ValueError) as error:
        raise InputError(f"sequence_bias={shown(value)} must be {{(id, ...): bias}} or [[[id, ...], bias]]") from error
    if any(math.isnan(bias) or bias == math.inf for bias in biases):
        raise InputError(f"sequence_bias={shown(value)}: biases are numbers, -inf bans")
    return dict(zip(_words("sequence_bias", sequences, vocab_size), biases, strict=True))


def _decay(value: Any) -> tuple[int, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InputError(f"exponential_decay_length_penalty={shown(value)} must be (tokens, factor)")
    name = "exponential_decay_length_penalty"
    return whole_number(name, value[0]), number(name, value[1], above=0)
