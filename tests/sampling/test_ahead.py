"""A sampler ahead of another one chooses what that will choose, and changes nothing of it."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mistral_portable.sampling import Sampler, SamplingParams

VOCAB = 24
BYTES = [bytes([97 + token % 7]) for token in range(VOCAB)]

settings: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 0.7, 2.0]), "seed": st.integers(0, 99)},
    optional={
        "repetition_penalty": st.sampled_from([0.5, 1.5]),
        "frequency_penalty": st.sampled_from([-1.0, 1.0]),
        "presence_penalty": st.sampled_from([-1.0, 1.0]),
        "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-np.inf, 3.0]), max_size=3),
        "top_k": st.integers(1, VOCAB),
        "top_p": st.floats(0.1, 1),
        "min_p": st.floats(0, 0.9),
        "typical_p": st.floats(0.1, 1),
        "epsilon_cutoff": st.just(0.02),
        "eta_cutoff": st.just(0.02),
        "logprobs": st.integers(0, 3),
        "repeat_last_n": st.integers(0, 8),
        "min_tokens": st.integers(0, 20),
        "no_repeat_ngram_size": st.integers(2, 3),
        "bad_words_ids": st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=2), max_size=3),
        "top_n_sigma": st.just(1.0),
        "xtc_probability": st.just(0.5),
        "xtc_threshold": st.just(0.05),
        "dry_multiplier": st.just(0.8),
        "dry_allowed_length": st.integers(0, 2),
        "dry_sequence_breakers": st.just(("a",)),
        "dynatemp_range": st.just(0.5),
        "mirostat": st.just(2),
        "samplers": st.permutations(("dry", "top_k", "top_p", "temperature", "min_p", "xtc")).map(tuple),
    },
)


def rows(seed: int, count: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, VOCAB), scale=2).astype(np.float32)


@given(
    settings=settings,
    prompt=st.lists(st.integers(0, VOCAB - 1), max_size=8),
    before=st.integers(0, 12),
    count=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_it_chooses_the_same_and_changes_nothing(
    settings: dict[str, Any], prompt: list[int], before: int, count: int, seed: int
) -> None:
    sampler = Sampler(
        SamplingParams(**{"max_tokens": 30, **settings}),
        prompt_tokens=prompt,
        end_tokens=[3, 4],
        piece=BYTES.__getitem__,
    )
    logits = rows(seed, before + count)
    for row in logits[:before]:
        sampler.sample(row)
    guessed = [other.sample(row).token for other in [sampler.ahead()] for row in logits[before:]]
    # Two of them side by side, on other rows: neither the sampler nor the other one may notice.
    one, two = sampler.ahead(), sampler.ahead()
    for row in rows(seed + 1, count):
        one.sample(row)
    assert [two.sample(row).token for row in logits[before:]] == guessed
    assert [sampler.sample(row).token for row in logits[before:]] == guessed
