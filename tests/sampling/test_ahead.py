"""A sampler ahead of another one chooses what that will choose, and changes nothing of it."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mistral_portable.sampling import Sampler, SamplingParams

VOCAB = 24

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
        "logprobs": st.integers(0, 3),
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
    sampler = Sampler(SamplingParams(**settings), prompt_tokens=prompt)
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
