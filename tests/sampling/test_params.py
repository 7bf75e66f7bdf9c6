import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.errors import InputError
from mistral_portable.sampling import SamplingParams


def make(**settings: Any) -> SamplingParams:
    """Values of any type, such as a user's JSON or command line would give."""
    return SamplingParams(**settings)


def test_the_defaults_switch_every_rule_off() -> None:
    params = SamplingParams()
    assert (params.max_tokens, params.temperature, params.stop, params.logit_bias) == (128, 0.7, (), {})


def test_sequences_become_tuples_and_one_stop_string_is_enough() -> None:
    assert make(stop="\n\n").stop == ("\n\n",)
    assert make(stop=["a", "b"]).stop == ("a", "b")
    assert make(stop_token_ids=[3, np.int64(4)]).stop_token_ids == (3, 4)


def test_numpy_numbers_become_plain_ones() -> None:
    params = make(temperature=np.float32(0.5), top_k=np.int32(7), logit_bias={np.int64(3): np.float64(-math.inf)})
    assert type(params.temperature) is float
    assert type(params.top_k) is int
    assert params.logit_bias == {3: -math.inf}


def test_params_are_values() -> None:
    bias = {1: 2.0}
    params = SamplingParams(seed=1, logit_bias=bias)
    bias[1] = 3.0
    assert params == SamplingParams(seed=1, logit_bias={1: 2.0})
    assert hash(params) == hash(replace(params))
    assert pickle.loads(pickle.dumps(params)) == params
    assert replace(params, temperature=0).temperature == 0


BAD: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 1.5, True, "5"],
    "temperature": [-0.1, 101, math.nan, math.inf, True, "1", None, 10**400],
    "top_k": [-1, 2.0, True, None],
    "top_p": [0, -0.5, 1.01, math.nan, math.inf, False, "0.9"],
    "min_p": [-0.1, 1.1, math.nan, True],
    "typical_p": [0, 1.1, math.nan, True],
    "epsilon_cutoff": [-0.1, 1.1, math.nan, True],
    "eta_cutoff": [-0.1, 1.1, math.nan, "x"],
    "repetition_penalty": [0, -1, 1e9, math.nan, math.inf, True],
    "frequency_penalty": [-2.1, 2.1, math.nan, True],
    "presence_penalty": [-2.1, 2.1, -math.inf, True],
    "logit_bias": [
        [(1, 2.0)],
        {-1: 0.0},
        {1.0: 0.0},
        {True: 0.0},
        {"1": 0.0},
        {1: math.inf},
        {1: math.nan},
        {1: None},
        {1: True},
        {1: 1e7},
    ],
    "seed": [-1, 1.0, True, "1"],
    "stop": ["", ["a", ""], [1], None, b"a", {"a": 1}],
    "stop_token_ids": [[-1], [1.0], [True], 2, "12", None],
    "min_tokens": [-1, 1.0, True, None, 129],
    "no_repeat_ngram_size": [-1, 1.5, True, None],
    "bad_words_ids": [[[]], [[-1]], [1], [[1.0]], None, "a", [[True]], {1: 2}],
    "logits_processors": [[1], None, "f"],
    "repeat_last_n": [-2, 1.0, None, True],
    "top_n_sigma": [-2, 101, math.nan, None, "1"],
    "xtc_probability": [-0.1, 1.1, math.nan, None],
    "xtc_threshold": [-0.1, 1.1, math.nan, True],
    "dry_multiplier": [-1, 101, math.nan, None],
    "dry_base": [0.9, math.inf, math.nan, None],
    "dry_allowed_length": [-1, 2.0, None],
    "dry_penalty_last_n": [-2, 2.0, None],
    "dry_sequence_breakers": ["", [""], [1], None, b"a"],
    "dynatemp_range": [-1, math.nan, None],
    "dynatemp_exponent": [-1, math.inf, None],
    "mirostat": [1, 3, -2, True, 2.0, None, "2"],
    "mirostat_tau": [-1, math.nan, None],
    "mirostat_eta": [-1, 1.5, None],
    "samplers": [["top_z"], "top_k", None, ["top_k", "top_k"], [1], ["temperature", "penalties"]],
    "ignore_eos": [1, None, "yes"],
    "logprobs": [-1, 1.0, True],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_named(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name) as caught:
        make(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BAD)
@given(value=st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()))
def test_any_value_is_taken_or_refused_by_name(name: str, value: object) -> None:
    try:
        make(**{name: value})
    except InputError as error:
        assert name in str(error)  # noqa: PT017  (either outcome is right)


def test_ids_are_checked_against_the_vocabulary() -> None:
    SamplingParams(logit_bias={9: 1.0}, stop_token_ids=(9,), logprobs=10).check_vocab(10)
    for params, name in (
        (SamplingParams(logit_bias={10: 1.0}), "logit_bias"),
        (SamplingParams(stop_token_ids=(10,)), "stop_token_ids"),
        (SamplingParams(logprobs=11), "logprobs"),
        (SamplingParams(bad_words_ids=((3, 10),)), "bad_words_ids"),
    ):
        with pytest.raises(InputError, match=name):
            params.check_vocab(10)


def test_llama_cpps_spellings_of_rules_are_understood() -> None:
    assert make(samplers=["typ_p", "temp"]).samplers == ("typical_p", "temperature")
    theirs = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
    only_ours = {"epsilon_cutoff", "eta_cutoff"}
    assert {*make(samplers=theirs).samplers} == {*SamplingParams().samplers} - only_ours
