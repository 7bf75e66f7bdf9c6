"""A grammar over the sampler, with a constraint of plain integers: which tokens, which random numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mistral_portable.errors import InputError, NumericsError
from mistral_portable.sampling import Sampled, Sampler, SamplingParams

VOCAB = 8


@dataclass
class Places:
    """A grammar: the sets of ids that may stand at each place, of which ids up to `known` are known."""

    places: Sequence[frozenset[int]]
    known: int = VOCAB
    taken: list[int] = field(default_factory=list)

    def begin(self, prompt_tokens: Sequence[int]) -> "Places":
        return Places(self.places, self.known)

    def _here(self) -> frozenset[int]:
        return self.places[len(self.taken)] if len(self.taken) < len(self.places) else frozenset()

    def allowed(self) -> NDArray[np.bool_]:
        return np.isin(np.arange(self.known), list(self._here()))

    @property
    def forced(self) -> int | None:
        return next(iter(self._here())) if len(self._here()) == 1 else None

    def accept(self, token: int) -> None:
        assert token in self._here()
        self.taken.append(token)

    def copy(self) -> "Places":
        return Places(self.places, self.known, list(self.taken))


sets = st.frozensets(st.integers(0, VOCAB - 1), min_size=1, max_size=3)
options = st.fixed_dictionaries(
    {"seed": st.integers(0, 99), "temperature": st.sampled_from([0.0, 0.5, 2.0])},
    optional={
        "top_k": st.just(2),
        "top_p": st.just(0.7),
        "repetition_penalty": st.just(1.5),
        "min_p": st.just(0.1),
        "xtc_probability": st.just(0.5),
        "mirostat": st.just(2),
        "min_tokens": st.integers(0, 2),
        "dynatemp_range": st.just(0.5),
        "no_repeat_ngram_size": st.just(9),
    },
)


def row(place: int, vocab: int = VOCAB) -> NDArray[np.float32]:
    return np.random.default_rng(place).normal(size=vocab).astype(np.float32)


def sample_all(places: Sequence[frozenset[int]], *, skip: bool, **settings: Any) -> list[int]:
    """Choose a token for each place from that place's row. skip: whether forced ones are taken without it."""
    sampler = Sampler(SamplingParams(grammar=Places(places), **settings))
    tokens: list[int] = []
    while len(tokens) < len(places):
        tokens.append(sampler.sample(row(len(tokens))).token)
        if skip:
            tokens += [sampled.token for sampled in sampler.forced(len(places) - len(tokens))]
    return tokens


@given(st.lists(sets, min_size=1, max_size=9), options)
def test_each_place_is_drawn_with_its_own_number_whether_others_were_forced_or_not(
    places: list[frozenset[int]], settings: dict[str, Any]
) -> None:
    drawn = sample_all(places, skip=False, **settings)
    assert sample_all(places, skip=True, **settings) == drawn
    assert all(token in place for token, place in zip(drawn, places, strict=True))


@given(sets, st.integers(0, 99), st.sampled_from([0.5, 2.0]))
def test_the_draw_is_that_of_the_allowed_tokens_alone(place: frozenset[int], seed: int, temperature: float) -> None:
    tokens = sorted(place)
    settings: dict[str, Any] = {"seed": seed, "temperature": temperature}
    masked = Sampler(SamplingParams(grammar=Places([place]), **settings))
    alone = Sampler(SamplingParams(**settings))
    found, probabilities = masked.distribution(row(0))
    assert found.tolist() == tokens
    np.testing.assert_array_equal(probabilities, alone.distribution(row(0)[tokens])[1])
    assert masked.sample(row(0)).token == tokens[alone.sample(row(0)[tokens]).token]


def test_greedy_is_the_best_allowed_token_and_logprobs_are_those_of_the_model() -> None:
    logits = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))
    params = SamplingParams(temperature=0, logprobs=2, grammar=Places([frozenset({0, 2})]))
    assert not SamplingParams(temperature=0, grammar=Places([])).is_greedy
    sampled = Sampler(params).sample(logits)
    assert sampled.token == 2
    assert sampled.logprob == pytest.approx(np.log(0.15), abs=1e-6)
    assert [top.token for top in sampled.top_logprobs] == [1, 3]


def test_no_token_is_forced_where_log_probabilities_are_wanted_and_none_without_a_grammar() -> None:
    one = frozenset({1})
    assert Sampler(SamplingParams(temperature=0)).forced(9) == []
    for logprobs, expected in ((0, []), (None, [Sampled(1), Sampled(1)])):
        sampler = Sampler(SamplingParams(logprobs=logprobs, grammar=Places([one] * 4)))
        sampler.sample(row(0))
        assert sampler.forced(2) == expected


def test_ids_that_the_grammar_does_not_know_are_not_allowed() -> None:
    grammar = Places([frozenset({3, 4})], known=5)
    found, _ = Sampler(SamplingParams(grammar=grammar)).distribution(row(0, 12))
    assert found.tolist() == [3, 4]


@pytest.mark.parametrize("skip", [False, True])
def test_where_nothing_is_left_it_is_an_error(skip: bool) -> None:
    every: list[dict[str, Any]] = [{"logit_bias": {5: -np.inf}}, {"bad_words_ids": [[1, 5]]}, {}]
    for settings in every:
        places = [frozenset({1}), frozenset({5}) if settings else frozenset({VOCAB + 1})]
        with pytest.raises(InputError, match="grammar allows"):
            sample_all(places, skip=skip, **settings)


def test_a_token_that_is_not_allowed_may_not_hide_bad_logits() -> None:
    logits = row(0)
    logits[3] = np.nan
    with pytest.raises(NumericsError):
        Sampler(SamplingParams(grammar=Places([frozenset({1})]))).sample(logits)


def test_params_take_a_compiled_grammar_and_no_text() -> None:
    with pytest.raises(InputError, match="compile_grammar"):
        SamplingParams(grammar="start: /a/")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ignore_eos"):
        SamplingParams(grammar=Places([]), ignore_eos=True)
