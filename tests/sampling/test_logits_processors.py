"""A caller's own rules in the sampler: what they are asked, in which order, and what is refused."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.errors import InputError, NumericsError
from mistral_portable.sampling import LogitsProcessor, Sampler, SamplingParams, sample_rows
from mistral_portable.sampling.processors import Row

LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))


def ban(*tokens: int) -> LogitsProcessor:
    def rule(text: Sequence[int], logits: Row, /) -> Row:
        logits[list(tokens)] = -np.inf
        return logits

    return rule


def sampled(rules: Any, logits: Row = LOGITS, prompt: Sequence[int] = (), **settings: Any) -> int:
    return Sampler(SamplingParams(logits_processors=rules, **settings), prompt_tokens=prompt).sample(logits).token


@given(st.lists(st.integers(0, 3)), st.integers(0, 9), st.sampled_from([0.0, 1.0]))
def test_a_rule_sees_prompt_and_answer_before_each_token(prompt: list[int], count: int, temperature: float) -> None:
    asked = list[list[int]]()

    def rule(tokens: Sequence[int], logits: Row, /) -> Row:
        asked.append(list(tokens))
        return logits

    params = SamplingParams(temperature=temperature, seed=1, logits_processors=(rule,))
    sampler, text, expected = Sampler(params, prompt_tokens=prompt), list(prompt), list[list[int]]()
    for _ in range(count):
        expected.append(list(text))
        text.append(sampler.sample(LOGITS).token)
    assert asked == expected


def test_rules_apply_in_their_order_behind_the_penalties_and_before_the_temperature() -> None:
    seen = list[list[float]]()

    def double(tokens: Sequence[int], logits: Row, /) -> Row:
        seen.append(logits.tolist())
        return logits * 2

    params = SamplingParams(temperature=0.5, top_k=3, repetition_penalty=2, logits_processors=(double, ban(1), double))
    tokens, probabilities = Sampler(params, prompt_tokens=[0]).distribution(np.array([4, 3, 1, 0], np.float32))
    assert seen == [[2, 3, 1, 0], [4, -math.inf, 2, 0]]
    assert tokens.tolist() == [0, 2, 3]
    np.testing.assert_allclose(probabilities, np.exp([0, -8, -16]) / np.exp([0, -8, -16]).sum())


def test_they_count_when_greedy_and_log_probabilities_stay_the_models() -> None:
    assert not SamplingParams(temperature=0, logits_processors=(ban(1),)).is_greedy
    params = SamplingParams(temperature=0, logprobs=1, logits_processors=[ban(1)])  # type: ignore[arg-type]  # a list is taken
    choice = Sampler(params).sample(LOGITS)
    assert choice.token == 3
    assert choice.logprob == pytest.approx(math.log(0.25))
    assert choice.top_logprobs[0].token == 1


@pytest.mark.parametrize("size", [4, 40_000])  # of rows whose memory is used again, too
def test_an_array_that_is_returned_stays_the_rules_own(size: int) -> None:
    own = np.zeros(size, np.float32)
    own[2] = 1
    own.flags.writeable = False
    logits = np.zeros(size, np.float32)
    rules = (lambda tokens, logits: own, ban(2))
    assert [sampled(rules, logits, temperature=0), sampled(rules[:1], logits, temperature=0)] == [0, 2]
    assert own[2] == 1
    assert not logits.any()


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda tokens, logits: None, r"\[1\] \(<lambda>\) has returned a NoneType: return float32 \[4\]"),
        (lambda tokens, logits: logits.astype(np.float64), r"returned float64 \[4\]"),
        (lambda tokens, logits: logits[:3], r"returned float32 \[3\]"),
        (lambda tokens, logits: logits[None], r"returned float32 \[1, 4\]"),
        (lambda tokens, logits: logits.tolist(), "returned a list"),
        (lambda tokens, logits: logits - np.float32(np.inf), "left no token to sample"),
        (lambda tokens, logits: logits * np.float32(np.nan), "made the logit of token 0 nan"),
        (lambda tokens, logits: np.array([0, 1, np.inf, 2], np.float32), "made the logit of token 2 inf"),
    ],
)
def test_a_result_that_is_no_row_of_logits_is_refused(rule: Any, message: str, temperature: float) -> None:
    with pytest.raises(InputError, match=message):
        sampled((ban(), rule), temperature=temperature)


def test_logits_that_are_not_finite_are_not_the_rules_fault() -> None:
    with pytest.raises(NumericsError):
        sampled((ban(1),), np.array([1, np.nan, 3], np.float32))


@pytest.mark.parametrize("threads", [1, 3])
def test_what_a_rule_raises_is_its_rows_result_and_the_sampler_goes_on(threads: int) -> None:
    failing = [True]

    def rule(tokens: Sequence[int], logits: Row, /) -> Row:
        if failing:
            raise KeyError("mine")
        return logits

    every = [SamplingParams(seed=seed, logits_processors=(rule,) if seed == 1 else ()) for seed in range(3)]
    samplers, alone = [Sampler(params) for params in every], [Sampler(params) for params in every]
    rows = np.stack([LOGITS] * 3)
    first, error, third = sample_rows(samplers, rows, threads=threads)
    assert [first, third] == [alone[0].sample(LOGITS), alone[2].sample(LOGITS)]
    assert isinstance(error, KeyError)
    failing.clear()
    assert sample_rows(samplers[1:2], rows[:1]) == [alone[1].sample(LOGITS)]


@pytest.mark.parametrize("wrong", [ban(1), [1], "ban", None, {1: ban(1)}])
def test_only_a_sequence_of_functions_is_taken(wrong: Any) -> None:
    with pytest.raises(InputError, match="logits_processors="):
        SamplingParams(logits_processors=wrong)
