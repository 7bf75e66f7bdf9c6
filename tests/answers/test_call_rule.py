"""call_rule: what mistral-common's encoder writes is allowed, token by token, and what keeps no schema is not."""

import json
from functools import cache

import jsonschema
import numpy as np
import pytest
from answers.call_rules import FUNCTIONS, JSON, Calls, accepts, constraint
from answers.drawn import Drawn, call_ids, parts, texts
from answers.scripted import written
from answers.versions import WITH_CALLS, WITH_REASONING, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mistral_portable.answers import named


def in_order(found: JSON) -> JSON:
    """The properties in the schema's order."""
    return {name: found[name] for name in ("city", "days") if name in found}


# llguidance wants U+007F escaped, which the encoder does not do.
cities = texts.map(lambda text: text.replace("\x7f", ""))
arguments = st.fixed_dictionaries({"city": cities}, optional={"days": st.integers(1, 14)}).map(in_order)
words = st.fixed_dictionaries({}, optional={"words": st.lists(st.sampled_from(["é", "漢", '"}', "[TOOL_CALLS]"]))})
valid: st.SearchStrategy[tuple[str, str, JSON]] = (
    st.tuples(call_ids, st.just("weather"), arguments)
    | st.tuples(call_ids, st.just("weather_words"), words)
    | st.tuples(call_ids, st.just("we"), st.just({}))
)
valid_calls = st.lists(valid, min_size=1, max_size=3, unique_by=lambda call: call[0])
wrong: st.SearchStrategy[tuple[str, JSON]] = st.sampled_from(
    [
        ("weather", {}),
        ("weather", {"city": "Paris", "days": 15}),
        ("weather", {"city": "Paris", "days": 1.5}),
        ("weather", {"city": 5}),
        ("weather", {"city": "Paris", "more": 1}),
        ("weather_words", {"words": ["e"]}),
        ("weather_words", {"words": "é"}),
        ("we", {"city": "Paris"}),
        ("weather_", {}),
        ("w", {}),
    ]
)


@pytest.mark.parametrize("version", WITH_CALLS)
@given(st.data())
@settings(max_examples=6)
def test_valid_calls_are_allowed_as_the_encoder_writes_them(version: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(version)
    calls: Calls = data.draw(valid_calls)
    reasoning = data.draw(texts) if version in WITH_REASONING else ""
    tokens = Drawn("", reasoning, tuple(calls)).tokens(tokenizer)
    assert accepts(version, constraint(version), tokens)
    found = parts(tokenizer, tokens)
    for call in found.tool_calls:
        jsonschema.validate(json.loads(call.arguments), FUNCTIONS[call.name] or {"maxProperties": 0})


@pytest.mark.parametrize("version", WITH_CALLS)
@given(st.data())
@settings(max_examples=6)
def test_a_call_that_keeps_no_schema_is_refused(version: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(version)
    before: Calls = data.draw(st.lists(valid, max_size=1))
    call = (data.draw(call_ids.filter(lambda id: id not in [id for id, _, _ in before])), *data.draw(wrong))
    tokens = Drawn("", "", (*before, call)).tokens(tokenizer)
    assert not accepts(version, constraint(version), tokens)


@pytest.mark.parametrize("version", WITH_CALLS)
def test_one_call_of_one_function(version: str) -> None:
    tokenizer = tokenizer_of(version)
    call = ("AbCdEfGh1", "weather", {"city": "Paris"})
    other: tuple[str, str, JSON] = ("AbCdEfGh2", "we", {})
    one, two = (Drawn("", "", calls).tokens(tokenizer) for calls in ((call,), (call, ("AbCdEfGh3", *call[1:]))))
    choice = named("weather")
    assert accepts(version, constraint(version, choice=choice), one)
    assert accepts(version, constraint(version, choice=choice), two)
    assert accepts(version, constraint(version, choice=choice, several=False), one)
    assert not accepts(version, constraint(version, choice=choice, several=False), two)
    assert not accepts(version, constraint(version, choice=choice), Drawn("", "", (other,)).tokens(tokenizer))


@pytest.mark.parametrize("version", WITH_CALLS)
def test_nothing_else_is_an_answer(version: str) -> None:
    tokenizer = tokenizer_of(version)
    for answer in ([], ["Sure."], ["[TOOL_CALLS]"], ["Sure.", "[TOOL_CALLS]"], ["[TOOL_CALLS]", "[]"]):
        assert not accepts(version, constraint(version), written(tokenizer, *answer))


@pytest.mark.parametrize("version", WITH_REASONING)
def test_reasoning_that_the_prompt_has_begun_goes_on(version: str) -> None:
    tokenizer = tokenizer_of(version)
    call = ["[TOOL_CALLS]", "we", "[ARGS]", "{}"]
    state = {thinks: constraint(version, thinks=thinks) for thinks in (True, False)}
    going_on = written(tokenizer, "Hm", "[/THINK]", *call)
    assert accepts(version, state[True], going_on)
    assert not accepts(version, state[False], going_on)
    assert not accepts(version, constraint(version, thinks=True), written(tokenizer, *call))


@cache
def closing(version: str) -> NDArray[np.bool_]:
    """Which tokens begin with a character that may end a value."""
    tokenizer = tokenizer_of(version)
    return np.array([tokenizer.token_bytes(id)[:1] in b'"}],' for id in range(tokenizer.vocab_size)])


@pytest.mark.parametrize("version", WITH_CALLS)
@given(st.integers(0, 2**32))
@settings(max_examples=3)
def test_whatever_is_drawn_of_what_is_allowed_is_a_call(version: str, seed: int) -> None:
    tokenizer, random = tokenizer_of(version), np.random.default_rng(seed)
    state, tokens = constraint(version), list[int]()
    while len(tokens) < 200 and not state.allowed()[tokenizer.eos_id]:
        allowed = state.allowed()
        ends = allowed & np.resize(closing(version), len(allowed))
        # Every second token ends something, if it can: the texts stay short.
        choice = ends if ends.any() and random.integers(2) else allowed
        tokens.append(int(random.choice(choice.nonzero()[0])))
        state.accept(tokens[-1])
    found = parts(tokenizer, tokens)
    assert found.tool_calls or len(tokens) == 200
    for call in found.tool_calls:
        jsonschema.validate(json.loads(call.arguments), FUNCTIONS[call.name] or {"maxProperties": 0})
