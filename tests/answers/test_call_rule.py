"""call_rule: what mistral-common's encoder writes is allowed, token by token, and what keeps no schema is not."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import jsonschema
import numpy as np
import pytest
from answers.drawn import Drawn, call_ids, names, parts, texts
from answers.scripted import written
from answers.versions import WITH_CALLS, WITH_REASONING, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mistral_portable.answers import call_rule, demanded, named
from mistral_portable.errors import InputError
from mistral_portable.grammar import Grammars
from mistral_portable.sampling import Constraint

JSON = dict[str, Any]
Calls = Sequence[tuple[str, str, JSON]]
"""Ids, names and arguments."""

PLACE: JSON = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
    "required": ["city"],
    "additionalProperties": False,
}
WORDS: JSON = {"properties": {"words": {"type": "array", "items": {"enum": ["é", "漢", '"}', "[TOOL_CALLS]"]}}}}
NOTHING = None
FUNCTIONS: Mapping[str, JSON | None] = {"weather": PLACE, "weather_words": WORDS, "we": NOTHING}
"""One name begins as another one, and each schema has keywords of its own."""


def tool(name: str, parameters: object) -> JSON:
    function = {"name": name, "parameters": parameters}
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


TOOLS = [tool(name, parameters) for name, parameters in FUNCTIONS.items()]


@cache
def grammars(version: str) -> Grammars:
    return Grammars(tokenizer_of(version), {tokenizer_of(version).eos_id})


def constraint(
    version: str, tools: Sequence[JSON] = TOOLS, choice: Any = "required", *, several: bool = True, thinks: bool = False
) -> Constraint:
    """The state before the first token of an answer to a chat."""
    tokenizer = tokenizer_of(version)
    rule = call_rule(tokenizer, demanded(tools, choice), several=several, thinks=thinks)
    prompt = tokenizer.chat([{"role": "user", "content": "Hi"}])
    return grammars(version).compile_parts("tool_choice", rule.lark, rule.parts).begin(prompt)


@cache
def texts_of(version: str) -> Mapping[bytes, list[int]]:
    """The tokens of a vocabulary by their bytes, special ones left out."""
    tokenizer, found = tokenizer_of(version), dict[bytes, list[int]]()
    for token in range(tokenizer.vocab_size):
        if not tokenizer.is_special(token):
            found.setdefault(tokenizer.token_bytes(token), []).append(token)
    return found


def accepts(version: str, state: Constraint, tokens: Sequence[int]) -> bool:
    """Whether these special tokens, and the texts between them, cut into tokens anyhow, may be the whole answer."""
    tokenizer = tokenizer_of(version)
    for special, group in groupby(tokens, tokenizer.is_special):
        ids = list(group)
        rest = b"" if special else b"".join(map(tokenizer.token_bytes, ids))
        while rest or (special and ids):
            sizes = range(min(len(rest), 64), 0, -1)
            fitting = (
                [ids.pop(0)] if special else (id for size in sizes for id in texts_of(version).get(rest[:size], ()))
            )
            allowed = state.allowed()
            token = next((id for id in fitting if allowed[id]), None)
            if token is None:
                return False
            state.accept(token)
            rest = rest[len(tokenizer.token_bytes(token)) :]
    return bool(state.allowed()[tokenizer.eos_id])


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
@settings(max_examples=7)
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
@settings(max_examples=10)
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


@given(st.lists(names, min_size=1, max_size=12, unique=True), st.data())
@settings(max_examples=20)
def test_names_are_told_apart(some: list[str], data: st.DataObject) -> None:
    for version in ("v3", "v13"):
        tokenizer = tokenizer_of(version)
        name = data.draw(st.sampled_from(some))
        tokens = Drawn("", "", (("AbCdEfGh1", name, {}),)).tokens(tokenizer)
        state = constraint(version, [tool(one, {"type": "object"}) for one in some])
        assert accepts(version, state, tokens)
        other = data.draw(names.filter(lambda other: other not in some))
        tokens = Drawn("", "", (("AbCdEfGh1", other, {}),)).tokens(tokenizer)
        state = constraint(version, [tool(one, {"type": "object"}) for one in some])
        assert not accepts(version, state, tokens)


SCHEMAS: list[tuple[JSON, JSON, JSON]] = [  # valid and invalid arguments
    ({}, {"a": [1]}, {"a": float("inf")}),
    ({"type": ["object", "null"]}, {"a": 1}, {"a": float("nan")}),
    (
        {"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}},
        {"n": {"n": {}}},
        {"n": 3},
    ),
    ({"anyOf": [PLACE, {"required": ["x"]}]}, {"x": 1}, {"days": 3}),
    ({"x-guidance": {"whitespace_flexible": True, "lenient": True}, "required": ["x"]}, {"x": 1}, {"y": 2}),
]


@pytest.mark.parametrize(("schema", "good", "bad"), SCHEMAS, ids=lambda value: str(value)[:30])
def test_arguments_are_an_object_whatever_the_schema(schema: JSON, good: JSON, bad: JSON) -> None:
    for version in ("v3", "v13"):
        tokenizer = tokenizer_of(version)
        for arguments, is_good in ((good, True), (bad, False)):
            text = json.dumps(arguments)
            call = {
                "v3": f'[{{"name": "f", "arguments": {text}, "id": "AbCdEfGh1"}}]',
                "v13": text,
            }[version]
            before = {"v3": ["[TOOL_CALLS]"], "v13": ["[TOOL_CALLS]", "f", "[ARGS]"]}[version]
            state = constraint(version, [tool("f", schema)])
            assert accepts(version, state, written(tokenizer, *before, call)) == is_good


HUGE = {"type": "object", "properties": {f"p{n}": {"enum": list(range(n, n + 20))} for n in range(900)}}


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, "not"),
        ({"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}, "nowhere"),
        ({"type": "string"}, "type='string', but arguments are an object"),
        ({"type": "object", "properties": {"a": {"pattern": "("}}}, "regex"),
        ("{}", "'{}' is no JSON schema"),
        (HUGE, "bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_schema_is_named(parameters: Any, reason: str) -> None:
    for version in ("v3", "v13"):
        with pytest.raises(InputError, match='tools: the parameters of "bad".*' + reason) as caught:
            constraint(version, [*TOOLS, tool("bad", parameters)])
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_too_much_is_refused() -> None:
    with pytest.raises(InputError, match="up to 128, not of 129"):
        constraint("v3", [tool(f"f{n}", PLACE) for n in range(129)])
    long = {**PLACE, "description": "x" * 5000}
    with pytest.raises(InputError, match="all schemas have 6"):
        constraint("v3", [tool(f"f{n}", long) for n in range(128)])
    assert constraint("v3", [tool(f"f{n}", PLACE) for n in range(128)]).forced is not None


def test_versions_without_calls_say_so() -> None:
    with pytest.raises(InputError, match="v1 has no tool calls; leave tool_choice out"):
        constraint("v1")


@cache
def closing(version: str) -> NDArray[np.bool_]:
    """Which tokens begin with a character that may end a value."""
    tokenizer = tokenizer_of(version)
    return np.array([tokenizer.token_bytes(id)[:1] in b'"}],' for id in range(tokenizer.vocab_size)])


@pytest.mark.parametrize("version", WITH_CALLS)
@given(st.integers(0, 2**32))
@settings(max_examples=5)
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
