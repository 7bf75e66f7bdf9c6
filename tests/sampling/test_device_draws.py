"""Draws by a device: its random numbers, ahead of time, and the rules that it must know."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.sampling import Sampler, SamplingParams
from mistral_portable.sampling.params import SAMPLERS


@given(st.lists(st.sampled_from(["sample", "drawn", "look", "ahead"]), max_size=20), st.integers(0, 3))
def test_numbers_are_the_same_whoever_draws_and_looks(turns: list[str], ahead: int) -> None:
    logits = np.random.default_rng(0).standard_normal((20, 30), np.float32)
    one, other = Sampler(SamplingParams(seed=5)), Sampler(SamplingParams(seed=5))
    for turn, row in zip(turns, logits, strict=False):
        match turn:
            case "sample":
                assert other.sample(row) == one.sample(row)
            case "drawn":
                token = one.sample(row).token
                assert other.drawn(token).token == token
            case "look":
                seen = [other.number(count) for count in range(ahead + 1)]
                assert seen == [other.number(count) for count in range(ahead + 1)]
            case "ahead":
                assert other.ahead().sample(row) == one.ahead().sample(row)
    assert (other.sample(logits[0]), other.chosen) == (one.sample(logits[0]), one.chosen)


def test_a_number_is_the_one_that_decides() -> None:
    sampler = Sampler(SamplingParams(seed=1))
    for _ in range(50):
        number = sampler.number()
        share = number + (1e-6 if number < 0.5 else -1e-6)
        row = np.log(np.array([share, 1 - share], np.float32)) * np.float32(
            0.7
        )  # so that the temperature restores the shares
        assert sampler.sample(row).token == (0 if number < 0.5 else 1)


@pytest.mark.parametrize(
    "rules",
    [{}, {"temperature": 1.0}, {"top_k": 3, "top_p": 0.5, "min_p": 0.1}, {"seed": 3, "stop": "a", "repeat_last_n": 4}],
)
def test_temperature_and_the_rules_behind_it_are_drawn(rules: dict[str, Any]) -> None:
    assert SamplingParams(**rules).is_drawn
    assert not SamplingParams(**rules | {"temperature": 0}).is_drawn


@pytest.mark.parametrize(
    "rules",
    [
        {"repetition_penalty": 1.1},
        {"frequency_penalty": 0.1},
        {"presence_penalty": 0.1},
        {"logit_bias": {1: 2.0}},
        {"min_tokens": 1},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[1]]},
        {"dry_multiplier": 0.5},
        {"logits_processors": [lambda tokens, logits: logits]},
        {"logprobs": 0},
        {"typical_p": 0.9},
        {"epsilon_cutoff": 0.1},
        {"eta_cutoff": 0.1},
        {"top_n_sigma": 1.0},
        {"xtc_probability": 0.5},
        {"dynatemp_range": 0.5},
        {"mirostat": 2},
        {"samplers": ("top_k", "temperature")},
        {"samplers": SAMPLERS[::-1][:-1]},
    ],
)
def test_all_other_rules_are_the_host_s(rules: dict[str, Any]) -> None:
    assert not SamplingParams(**rules).is_drawn
