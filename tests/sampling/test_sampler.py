import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.errors import InputError, NumericsError
from mistral_portable.sampling import Sampler, SamplingParams
from mistral_portable.sampling.processors import Row

PROBABILITIES = np.array([0.2, 0.5, 0.05, 0.25])
LOGITS = np.log(PROBABILITIES).astype(np.float32)

rows = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=30).map(lambda row: np.array(row, np.float32))
settings = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 5),
        "top_k": st.integers(0, 40),
        "top_p": st.floats(0.01, 1),
        "min_p": st.floats(0, 1),
        "typical_p": st.floats(0.01, 1),
        "repetition_penalty": st.floats(0.5, 2),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "seed": st.integers(0, 2**64),
        "logprobs": st.none() | st.just(0) | st.just(1),
    },
)


def draw(count: int, logits: Row = LOGITS, **settings: Any) -> list[int]:
    sampler = Sampler(SamplingParams(**settings))
    return [sampler.sample(logits).token for _ in range(count)]


def test_greedy_takes_the_highest_logit_and_the_lowest_id_of_a_tie() -> None:
    assert draw(2, temperature=0, top_k=3, top_p=0.1) == [1, 1]
    assert draw(1, np.array([0, 7, 7], np.float32), temperature=0) == [1]


def test_frequencies_follow_the_probabilities() -> None:
    count = 10_000
    observed = np.bincount(draw(count, temperature=1, seed=0), minlength=4) / count
    # Four standard deviations of a binomial share; the seed is fixed, so this cannot flicker.
    assert np.all(np.abs(observed - PROBABILITIES) < 4 * np.sqrt(PROBABILITIES * (1 - PROBABILITIES) / count))


def test_a_draw_is_the_inverse_of_the_cumulative_probability() -> None:
    uniforms = np.random.Generator(np.random.PCG64(5)).random(200)
    expected = np.searchsorted(np.cumsum(PROBABILITIES), uniforms, side="right")
    assert draw(200, temperature=1, seed=5) == expected.tolist()


@given(
    size=st.integers(1, 1500),
    banned=st.lists(st.tuples(st.integers(0, 1500), st.integers(1, 600))),
    scale=st.sampled_from([0.1, 5.0, 80.0]),
    seed=st.integers(0, 2**32),
)
def test_large_vocabularies_are_drawn_from_alike(
    size: int, banned: list[tuple[int, int]], scale: float, seed: int
) -> None:
    """Sums of blocks of probabilities, some of them 0, lead to the token that one sum over all leads to."""
    logits = np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)
    for start, count in banned:
        logits[start : start + count] = -np.inf
    logits[seed % size] = 0
    sampler, uniforms = Sampler(SamplingParams(temperature=1, seed=seed)), np.random.Generator(np.random.PCG64(seed))
    tokens, probabilities = sampler.distribution(logits)
    edges = np.cumsum(probabilities)
    for u in uniforms.random(20):
        token = sampler.sample(logits).token
        assert probabilities[tokens.tolist().index(token)] > 0
        if np.min(np.abs(edges - u)) > 1e-12:
            assert token == tokens[np.searchsorted(edges, u, side="right")]


def test_the_stream_is_frozen() -> None:
    """A change of these tokens breaks the seeds that users have noted down."""
    logits = np.linspace(-2, 2, 1000, dtype=np.float32)
    assert draw(6, logits, seed=1, top_p=0.9) == [899, 992, 744, 991, 831, 872]


@given(row=rows, settings=settings)
def test_a_seed_repeats_and_what_is_drawn_has_a_chance(row: Row, settings: dict[str, Any]) -> None:
    settings.setdefault("seed", 0)
    first, second = Sampler(SamplingParams(**settings)), Sampler(SamplingParams(**settings))
    for _ in range(5):
        tokens, probabilities = first.distribution(row)
        assert probabilities.sum() == pytest.approx(1)
        assert np.all(np.diff(tokens) > 0)
        sampled = first.sample(row)
        assert sampled == second.sample(row)
        assert probabilities[tokens.tolist().index(sampled.token)] > 0


def test_no_seed_means_another_stream_each_time() -> None:
    logits = np.zeros(1000, np.float32)
    assert draw(20, logits) != draw(20, logits)


def test_a_forced_choice_uses_one_number_and_a_greedy_one_uses_none() -> None:
    """Two sequences with one seed stay in step though one of them had no choice."""
    forced, free = Sampler(SamplingParams(seed=3)), Sampler(SamplingParams(seed=3))
    only = np.array([0, -np.inf, -np.inf, -np.inf], np.float32)
    assert forced.sample(only).token == 0
    free.sample(LOGITS)
    assert [forced.sample(LOGITS) for _ in range(50)] == [free.sample(LOGITS) for _ in range(50)]


@given(row=rows, noise=st.integers(0, 2**32))
def test_rounding_of_the_logits_moves_a_draw_only_at_an_edge(row: Row, noise: int) -> None:
    random = np.random.default_rng(noise)
    other = row + random.uniform(-1e-6, 1e-6, row.size).astype(np.float32)
    sampler = Sampler(SamplingParams(temperature=1, seed=noise))
    u = np.random.Generator(np.random.PCG64(noise)).random()
    edges = np.cumsum(sampler.distribution(row)[1])
    if np.min(np.abs(edges - u)) > 1e-4:
        assert sampler.sample(row) == Sampler(SamplingParams(temperature=1, seed=noise)).sample(other)


def test_penalties_count_the_prompt_where_they_should() -> None:
    logits = np.array([2, 1.9, 1.8], np.float32)
    params = SamplingParams(temperature=0, repetition_penalty=1.5)
    assert [Sampler(params, prompt_tokens=p).sample(logits).token for p in ([], [0], [0, 1], [0, 1, 2])] == [0, 1, 2, 0]
    only_output = SamplingParams(temperature=0, presence_penalty=1, frequency_penalty=0.25)
    assert Sampler(only_output, prompt_tokens=[0, 0, 0]).sample(logits).token == 0


def test_penalties_follow_the_generated_tokens() -> None:
    logits = np.array([1.0, 0.9, 0.2], np.float32)
    # After each choice its logit falls by 0.25: 1.0 .9 .2 | .75 .9 .2 | .75 .65 .2 | .5 .65 .2 | .5 .4 .2 | .25 .4 .2
    assert draw(6, logits, temperature=0, frequency_penalty=0.25) == [0, 1, 0, 1, 0, 1]
    # Presence counts once: 1.0 .9 .2 | .5 .9 .2 | .5 .4 .2 | .5 .4 .2
    assert draw(4, logits, temperature=0, presence_penalty=0.5) == [0, 1, 0, 0]


def test_a_bias_bans_or_forces() -> None:
    assert 1 not in draw(200, logit_bias={1: -math.inf}, seed=0)
    assert set(draw(20, logit_bias={2: 100.0}, seed=0)) == {2}
    assert draw(1, temperature=0, logit_bias={1: -math.inf, 3: -0.5}) == [0]


def test_logprobs_are_those_of_the_model() -> None:
    params = SamplingParams(temperature=0, logprobs=2, logit_bias={1: -math.inf}, top_k=1)
    sampled = Sampler(params).sample(LOGITS)
    assert sampled.token == 3
    assert sampled.logprob == pytest.approx(math.log(0.25), abs=1e-6)
    assert [top.token for top in sampled.top_logprobs] == [1, 3]
    assert [top.logprob for top in sampled.top_logprobs] == pytest.approx([math.log(0.5), math.log(0.25)], abs=1e-6)


@given(row=rows, data=st.data())
def test_top_logprobs_are_a_stable_ranking(row: Row, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, row.size))
    sampled = Sampler(SamplingParams(logprobs=n, seed=0)).sample(row)
    ranking = sorted(range(row.size), key=lambda token: (-row[token], token))[:n]
    assert [top.token for top in sampled.top_logprobs] == ranking
    assert sampled.logprob is not None
    assert sampled.logprob <= 0


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    ("logits", "kind", "message"),
    [
        ([1, math.nan, 3], NumericsError, "token 1 is nan"),
        ([1, 2, math.inf], NumericsError, "token 2 is inf"),
        ([-math.inf] * 3, NumericsError, "is -inf"),
    ],
)
def test_unsound_logits_are_refused(
    temperature: float, logits: list[float], kind: type[Exception], message: str
) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, top_p=0.9, top_k=2))
    with pytest.raises(kind, match=message):
        sampler.sample(np.array(logits, np.float32))


def test_banning_every_token_is_refused() -> None:
    with pytest.raises(InputError, match="logit_bias"):
        Sampler(SamplingParams(logit_bias=dict.fromkeys(range(4), -math.inf))).sample(LOGITS)


@pytest.mark.parametrize("logits", [LOGITS.astype(np.float64), LOGITS[None], np.float32(1.0), np.zeros(0, np.float32)])
def test_only_one_float32_row_is_taken(logits: Any) -> None:
    with pytest.raises(InputError, match="float32 row"):
        Sampler(SamplingParams()).sample(logits)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    for prompt in ([0, 4], [-1]):
        with pytest.raises(InputError, match="prompt"):
            Sampler(SamplingParams(), prompt_tokens=prompt).sample(LOGITS)
    with pytest.raises(InputError, match="logit_bias"):
        Sampler(SamplingParams(logit_bias={4: 1.0})).sample(LOGITS)


def test_the_vocabulary_does_not_change() -> None:
    sampler = Sampler(SamplingParams())
    sampler.sample(LOGITS)
    with pytest.raises(InputError, match="3 entries"):
        sampler.sample(LOGITS[:3])


def test_logits_may_be_read_only_and_are_left_alone() -> None:
    logits = LOGITS.copy()
    logits.flags.writeable = False
    draw(3, logits, top_p=0.9, top_k=3, min_p=0.01, typical_p=0.9, repetition_penalty=1.2, logit_bias={0: 1.0})


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_bias_that_bans_every_token_is_the_callers(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, logit_bias=dict.fromkeys(range(3), -math.inf)))
    with pytest.raises(InputError, match="every logit is -inf, no token is left to sample: ban fewer tokens"):
        sampler.sample(np.ones(3, np.float32))
