"""Drafts save steps and change nothing: tokens, log-probabilities and errors are those without, whatever is drafted."""

import time
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from guessing import Guessing
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import mistral_portable as mp
from mistral_portable.boundary.registry import candidates
from mistral_portable.cache import CacheManager, StepPlan
from mistral_portable.config import Window
from mistral_portable.drafts import StepCosts
from mistral_portable.engine.drafting import MOST_DRAFTED
from mistral_portable.errors import CacheError, CapacityError, CheckpointError, InputError, NumericsError

stepping: Any = import_module("mistral_portable.engine.steps")
BACKENDS = [found.name for found in candidates() if found.availability.score > 0]
REPEATS = [*range(5, 45)] * 3
GREEDY: dict[str, Any] = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}


class Switch:
    """Stands for the source of drafts of a model, so that each example has one of its own."""

    def __init__(self) -> None:
        self.source = Guessing(0, 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


@cache
def loaded(window: Window, backend: str = "numba") -> tuple[mp.Model, Switch]:
    switch = Switch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("mistral_portable.engine.load"), "SuffixDrafting", lambda: switch)
        return mp.load("tiny", backend=backend, window=window, max_lanes=3, max_context=140, draft="suffix"), switch


def feasible(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "min_tokens": min(options.get("min_tokens", 0), options["max_tokens"])}


def by_text(tokens: Sequence[int], logits: NDArray[np.float32], /) -> NDArray[np.float32]:
    """A rule of the caller's own that depends on every token of the text."""
    random = np.random.default_rng(list(tokens))
    logits[random.integers(logits.size, size=40)] += np.float32(4)
    return logits


windows = st.one_of(st.integers(1, 8), st.none())
prompts = st.lists(st.integers(5, 1000), min_size=1, max_size=40)
rules: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.0, 2.0]),
        "seed": st.integers(0, 99),
        "max_tokens": st.integers(1, 60),
    },
    optional={
        "repetition_penalty": st.sampled_from([1.3]),
        "frequency_penalty": st.sampled_from([0.8]),
        "presence_penalty": st.sampled_from([-0.5]),
        "logit_bias": st.dictionaries(st.integers(5, 1000), st.sampled_from([-np.inf, 5.0]), max_size=3),
        "logprobs": st.integers(0, 3),
        "top_k": st.sampled_from([3, 40]),
        "top_p": st.sampled_from([0.9]),
        "min_p": st.sampled_from([0.1]),
        "ignore_eos": st.booleans(),
        "stop_token_ids": st.lists(st.integers(5, 1000), max_size=20),
        "min_tokens": st.integers(0, 20),
        "no_repeat_ngram_size": st.integers(1, 3),
        "bad_words_ids": st.lists(st.lists(st.integers(5, 1000), min_size=1, max_size=2), max_size=9),
        "logits_processors": st.just((by_text,)),
        "repeat_last_n": st.integers(0, 20),
        "top_n_sigma": st.just(1.0),
        "xtc_probability": st.just(0.5),
        "xtc_threshold": st.just(0.02),
        "dry_multiplier": st.just(0.8),
        "dry_allowed_length": st.integers(0, 2),
        "dry_penalty_last_n": st.integers(-1, 30),
        "dynatemp_range": st.just(0.5),
        "mirostat": st.just(2),
        "samplers": st.permutations(("dry", "top_k", "top_p", "temperature", "min_p", "xtc")).map(tuple),
        "n": st.just(2),
    },
).map(feasible)


def check(window: Window, several: Sequence[tuple[list[int], dict[str, Any]]], seed: int, wrong: float) -> None:
    """Ask for answers alone and without drafts, then together with drafts: bit for bit the same."""
    model, switch = loaded(window)
    switch.source = guesses = Guessing(seed, wrong)
    asked, expected = list[tuple[list[int], mp.SamplingParams]](), list[mp.Generation]()
    for prompt, options in several:
        options = dict(options)
        for number in range(options.pop("n", 1)):
            params = mp.SamplingParams(**{**options, "seed": options["seed"] + number})
            asked.append((prompt, params))
            expected.append(model.generate(prompt, params, draft="off"))
            assert expected[-1].timings.drafted_tokens == 0
            guesses.texts.append((*prompt, *expected[-1].tokens))
    found = model.generate([prompt for prompt, _ in asked], [params for _, params in asked])
    for generation, same in zip(found, expected, strict=True):
        assert generation.tokens == same.tokens
        assert generation.logprobs == same.logprobs
        assert (generation.text, generation.finish_reason) == (same.text, same.finish_reason)
        assert 0 <= generation.timings.accepted_tokens <= generation.timings.drafted_tokens
    assert model.manager.lanes == ()


@settings(max_examples=60)  # each makes up to 16 answers
@given(
    window=windows,
    several=st.lists(st.tuples(prompts, rules), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    wrong=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_answers_are_those_without_drafts(
    window: Window, several: list[tuple[list[int], dict[str, Any]]], seed: int, wrong: float
) -> None:
    check(window, several, seed, wrong)


def _one_too_many(patch: pytest.MonkeyPatch) -> None:
    count = stepping.common_length
    patch.setattr(stepping, "common_length", lambda one, other: min(count(one, other) + 1, len(one), len(other)))


def _no_rollback(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CacheManager, "rollback", lambda self, lane, length: None)


def _number_twice(patch: pytest.MonkeyPatch) -> None:
    """Draw a step's second token with the number of its first one."""
    before, run, rows = dict[int, Any](), stepping.Steps.run, stepping.sample_rows

    def step(self: Any) -> Any:
        before.clear()
        return run(self)

    def again(samplers: Any, logits: Any) -> Any:
        for sampler in samplers:
            if id(sampler) in before:
                sampler._random.bit_generator.state = before[id(sampler)]
            before[id(sampler)] = sampler._random.bit_generator.state
        return rows(samplers, logits)

    patch.setattr(stepping.Steps, "run", step)
    patch.setattr(stepping, "sample_rows", again)


@pytest.mark.parametrize("mutate", [_one_too_many, _no_rollback, _number_twice])
def test_a_wrong_engine_is_caught(mutate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With half of the drafted tokens wrong."""
    mutate(monkeypatch)
    options = {"temperature": 1.0, "seed": 3, "max_tokens": 40, "ignore_eos": True}
    loaded.cache_clear()
    try:
        with pytest.raises((AssertionError, CacheError)):
            check(5, [([5, 6, 7], options), ([9, 8], options)], seed=1, wrong=0.5)
    finally:
        loaded.cache_clear()  # what the wrong engine has left in the cache


@pytest.fixture
def timeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all steps count as equally long, so that drafts do not depend on this machine's clock."""
    monkeypatch.setattr(StepCosts, "seconds", lambda self: [1.0] * 65)


@pytest.mark.usefixtures("timeless")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_text_that_repeats_itself_takes_fewer_steps(backend: str, counted: list[int]) -> None:
    """Greedy, the embedded model repeats ids that mean nothing to it; on devices, too, if it is asked for."""
    with mp.load("tiny", backend=backend, draft="suffix") as model:
        expected = model.generate(REPEATS, max_tokens=100, temperature=0, ignore_eos=True, draft="off")
        counted.clear()
        found = model.generate(REPEATS, max_tokens=100, temperature=0, ignore_eos=True)
        assert found.tokens == expected.tokens
        timings = found.timings
        assert timings.accepted_tokens > 30
        assert len(counted) == 100 - timings.accepted_tokens
        assert sum(counted[1:]) == 99 - timings.accepted_tokens + timings.drafted_tokens
        assert timings.decode_tokens == 99


@pytest.mark.usefixtures("timeless")
@pytest.mark.parametrize("draft", ["off", "auto"])
def test_who_drafts(draft: str) -> None:
    """By default those whose bits do not depend on what else is in a step; nobody if it is switched off."""
    for backend in BACKENDS:
        with mp.load("tiny", backend=backend, draft=draft) as model:
            timings = model.generate(REPEATS, max_tokens=60, temperature=0, ignore_eos=True).timings
            assert (timings.drafted_tokens > 0) == (draft == "auto" and model.program.batch_invariant)


@pytest.mark.usefixtures("timeless")
def test_a_text_that_repeats_nothing_tries_nothing() -> None:
    prompt, new = [*range(5, 45)], 0
    options: dict[str, Any] = {"max_tokens": 10, "temperature": 2.0, "ignore_eos": True}
    with mp.load("tiny", backend="numba") as model:
        for seed in range(9):
            found = model.generate(prompt, seed=seed, **options)
            if len({*prompt, *found.tokens}) == 50:
                new += 1
                assert found.timings.drafted_tokens == 0
    assert new


@pytest.mark.usefixtures("timeless")
@pytest.mark.parametrize("as_text", [False, True])
def test_a_prediction_is_tried_from_the_first_token_on(as_text: bool) -> None:
    """One that does not come costs the steps that tried it, and changes nothing."""
    with mp.load("tiny", backend="numba") as model:
        options: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
        expected = model.generate("Once upon a time", draft="off", **options)
        prediction: str | tuple[int, ...] = expected.text if as_text else expected.tokens
        found = model.generate("Once upon a time", prediction=prediction, **options)
        assert found.tokens == expected.tokens
        assert found.timings.accepted_tokens > 30
        wrong = [token ^ 1 for token in expected.tokens]
        assert model.generate("Once upon a time", prediction=wrong, **options).tokens == expected.tokens
        again = model.generate("Once upon a time", prediction=[*range(5, 500)] * 20, **options)  # beyond _READ
        assert again.tokens == expected.tokens


@pytest.mark.usefixtures("timeless")
@given(most=st.integers(0, 20))
@settings(max_examples=8)  # of 21 numbers
def test_a_call_may_say_how_much_is_tried(most: int) -> None:
    model, _ = loaded(None)
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
    expected = model.generate([5, 6, 7], draft="off", **options).tokens
    sizes, step = list[int](), model.program.step

    def noted(plan: StepPlan, *arguments: Any) -> Any:
        sizes.append(len(plan.tokens))
        return step(plan, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.program, "step", noted)
        switch = loaded(None)[1]
        switch.source = Guessing(0, 0)
        switch.source.texts.append((5, 6, 7, *expected))
        assert model.generate([5, 6, 7], draft=most, **options).tokens == expected
    assert max(sizes[1:]) <= 1 + min(most, MOST_DRAFTED)
    assert (len(sizes) < 40) == (most > 0)


@pytest.mark.parametrize("wrong", [3, ["a"], [10**9], {"content": "x"}, b"x"])
def test_a_bad_prediction_is_refused(wrong: Any) -> None:
    model, _ = loaded(None)
    with pytest.raises(InputError, match=r"^prediction: "):
        model.generate([5], prediction=wrong)
    assert model.generate([5], max_tokens=1, prediction=[]).tokens


def test_a_grammar_forces_tokens_that_were_drafted() -> None:
    """Tokens that the grammar leaves alone may be those of a draft, or some of them, or none."""
    model, switch = loaded(None)
    schema = {"type": "object", "properties": {"name": {"enum": ["red ball", "red car"]}}, "required": ["name"]}
    for seed in range(6):
        options: dict[str, Any] = {"schema": schema, "max_tokens": 40, "temperature": 1.0, "seed": seed}
        expected = model.generate("Once upon a time", draft="off", **options)
        for wrong in (0.0, 0.2, 1.0):
            switch.source = Guessing(seed, wrong)
            switch.source.texts.append((*model.encode("Once upon a time"), *expected.tokens))
            found = model.generate("Once upon a time", **options)
            assert (found.tokens, found.text) == (expected.tokens, expected.text)
            assert (found.timings.accepted_tokens > 0) == (wrong < 1)


def test_streams_with_stop_strings_end_where_they_do_without() -> None:
    model, switch = loaded(None)
    text = model.generate("Once upon a time", draft="off", max_tokens=40, temperature=0)
    stop = text.text.split()[6]
    switch.source = Guessing(1, 0.1)
    switch.source.texts.append((*model.encode("Once upon a time"), *text.tokens))
    expected = model.generate("Once upon a time", draft="off", max_tokens=40, temperature=0, stop=[stop])
    with model.stream("Once upon a time", max_tokens=40, temperature=0, stop=[stop]) as stream:
        assert "".join(stream) == expected.text
    assert stream.generation.tokens == expected.tokens
    assert stream.generation.stop_string == stop
    assert stream.generation.timings.drafted_tokens > 0
    assert model.loop.last_text.tokens == [*model.encode("Once upon a time"), *expected.tokens]
    assert model.manager.lanes == ()


def test_where_memory_is_short_steps_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    model, switch = loaded(None)
    expected = model.generate([5, 6, 7], draft="off", **GREEDY)
    switch.source = Guessing(1, 0)
    switch.source.texts.append((5, 6, 7, *expected.tokens))
    step, sizes = model.program.step, list[int]()

    def short(plan: StepPlan, *arguments: Any) -> Any:
        sizes.append(len(plan.tokens))
        if len(plan.tokens) > 4:
            raise CapacityError("no room for 5 tokens: take fewer")
        return step(plan, *arguments)

    monkeypatch.setattr(model.program, "step", short)
    found = model.generate([5, 6, 7], **GREEDY)
    assert found.tokens == expected.tokens
    refused = next(number for number, size in enumerate(sizes) if size > 4)
    assert sizes[refused + 1 :] == [1] * (len(sizes) - refused - 1)


def test_rows_that_are_not_finite_end_the_answer_behind_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model, switch = loaded(None)
    expected = model.generate([5, 6, 7], draft="off", **GREEDY)
    step, spans = model.program.step, list[bool]()

    def broken(plan: StepPlan, *arguments: Any) -> Any:
        outputs = dict(step(plan, *arguments))
        logits = outputs["logits"].copy()
        at = plan.positions[plan.logit_rows]
        spans.append(12 in at[1:])
        logits[at == 12] = np.nan
        return {**outputs, "logits": logits}

    monkeypatch.setattr(model.program, "step", broken)
    for seed in range(4):
        switch.source = Guessing(seed, 0)
        switch.source.texts.append((5, 6, 7, *expected.tokens))
        streamer = model.stream([5, 6, 7], **GREEDY)
        with pytest.raises(NumericsError):
            list(streamer)
        assert streamer.generation.tokens == expected.tokens[:10]
        assert model.manager.lanes == ()
    assert any(spans)


def test_seconds_count_the_sampler_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = loaded(None)
    sample_rows, slept = stepping.sample_rows, list[float]()

    def slow(samplers: Any, logits: Any) -> Any:
        begin = time.perf_counter()
        time.sleep(0.002)
        slept.append(time.perf_counter() - begin)
        return sample_rows(samplers, logits)

    monkeypatch.setattr(stepping, "sample_rows", slow)
    timings = model.generate([5, 6, 7], **GREEDY).timings
    assert timings.prefill_s + timings.decode_s >= sum(slept)


@pytest.mark.parametrize("wrong", ["tiny.gguf", 3, None, True])
def test_a_bad_draft_is_refused(wrong: Any) -> None:
    with pytest.raises((InputError, CheckpointError), match="draft="):
        mp.load("tiny", draft=wrong)
    model, _ = loaded(None)
    with pytest.raises(InputError, match="draft="):
        model.generate([5], draft=-1 if wrong == 3 else wrong)
