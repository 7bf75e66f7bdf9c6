"""call_rule: names and parameters of any functions, and which are refused."""

import json
from typing import Any

import pytest
from answers.call_rules import JSON, PLACE, TOOLS, accepts, constraint, tool
from answers.drawn import Drawn, names
from answers.scripted import written
from answers.versions import tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_portable.errors import InputError


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
