"""Tokens that may not come: held against transformers' processors in tests/peers, and here against plain loops."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.errors import InputError
from mistral_portable.sampling import Sampler, SamplingParams

VOCAB = 5
ids = st.integers(0, VOCAB - 1)
texts = st.lists(ids, max_size=12)
words = st.lists(st.lists(ids, min_size=1, max_size=4).map(tuple), max_size=4)


def banned(text: list[int], chosen: int, ends: set[int], params: SamplingParams) -> set[int]:
    """Which tokens the rules forbid behind a text, of which the last `chosen` are the answer: each one is tried."""
    n, out = params.no_repeat_ngram_size, set[int]()
    for token in range(VOCAB):
        longer = [*text, token]
        grams = [tuple(longer[i : i + n]) for i in range(len(longer) - n + 1)] if n else []
        repeats = bool(grams) and grams[-1] in grams[:-1]
        completes = any(tuple(longer[-len(word) :]) == word for word in params.bad_words_ids)
        if repeats or completes or (token in ends and chosen < params.min_tokens):
            out.add(token)
    return out


@given(
    prompt=texts,
    size=st.integers(0, 4),
    bad=words,
    least=st.integers(0, 6),
    ends=st.frozensets(ids, max_size=2),
    settings=st.sampled_from([{"temperature": 0}, {"temperature": 1.5}, {"temperature": 1, "top_k": 2}]),
    seed=st.integers(0, 999),
)
def test_what_is_left_is_what_no_rule_forbids(
    prompt: list[int], size: int, bad: Any, least: int, ends: frozenset[int], settings: dict[str, Any], seed: int
) -> None:
    rules = {"no_repeat_ngram_size": size, "bad_words_ids": bad, "min_tokens": least}
    params = SamplingParams(seed=seed, **rules, **settings)
    sampler = Sampler(params, prompt_tokens=prompt, end_tokens=ends)
    plain = Sampler(SamplingParams(seed=seed, **settings))
    text, random = list(prompt), np.random.default_rng(seed)
    for place in range(8):
        logits = random.normal(size=VOCAB).astype(np.float32)
        out = banned(text, place, set(ends), params)
        if len(out) == VOCAB:
            with pytest.raises(InputError, match="no token is left"):
                sampler.sample(logits)
            return
        masked = logits.copy()
        masked[list(out)] = -np.inf
        text.append(sampler.sample(logits).token)
        assert text[-1] == plain.sample(masked).token


@pytest.mark.parametrize("rule", [{"min_tokens": 1}, {"no_repeat_ngram_size": 3}, {"bad_words_ids": [[1]]}])
def test_a_rule_wants_the_logits_on_the_host(rule: dict[str, Any]) -> None:
    assert not SamplingParams(temperature=0, **rule).is_greedy


def test_more_tokens_at_least_than_at_most_are_refused() -> None:
    SamplingParams(min_tokens=3, max_tokens=3)
    SamplingParams(min_tokens=3, max_tokens=None)
    with pytest.raises(InputError, match="min_tokens=4 is more than max_tokens=3"):
        SamplingParams(min_tokens=4, max_tokens=3)
