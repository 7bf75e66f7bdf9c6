"""A JSON schema allows its valid instances, token by token, and nothing else; jsonschema is the oracle."""

import json
from typing import Any

import jsonschema
import pytest
from grammar.schemas import cases, schemas, text_of
from grammar.walk import CHAT, TEXT, accepts, grammars
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from mistral_portable.errors import InputError

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


@given(case=cases(), prompt=st.sampled_from([TEXT, CHAT]))
def test_a_value_is_accepted_if_and_only_if_it_is_valid(case: tuple[dict[str, Any], Any], prompt: list[int]) -> None:
    schema, value = case
    assert accepts(grammars().compile(schema=schema), text_of(value), prompt) == is_valid(value, schema)


@given(drawn=schemas(), data=st.data())
def test_every_valid_value_is_accepted_however_it_is_indented(drawn: Any, data: st.DataObject) -> None:
    schema, values = drawn
    value = data.draw(values)
    assert is_valid(value, schema)
    grammar = grammars().compile(schema=schema)
    for indent, separators in ((None, (",", ":")), (None, None), (2, None), ("\t", None)):
        assert accepts(grammar, json.dumps(value, ensure_ascii=False, indent=indent, separators=separators))


@given(drawn=schemas(), data=st.data())
def test_a_text_that_is_cut_off_is_a_beginning_and_no_answer(drawn: Any, data: st.DataObject) -> None:
    schema, values = drawn
    text = text_of(data.draw(values))
    grammar = grammars().compile(schema=schema)
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    assume(cut != "-0")  # of "-0.25", say: JSON's 0, which llguidance does not write where numbers have bounds
    assert accepts(grammar, cut, whole=False)
    try:
        whole = is_valid(json.loads(cut), schema)
    except json.JSONDecodeError:
        whole = False
    assert accepts(grammar, cut) == whole  # 1 of 12, say, is an answer as well


def test_a_mapping_its_text_and_a_pydantic_class_are_the_same_schema() -> None:
    class Person(BaseModel):
        name: str
        age: int = Field(ge=0)

    compiled = [grammars().compile(schema=schema) for schema in (PERSON, json.dumps(PERSON, indent=4))]
    assert compiled[0] is compiled[1]
    for grammar in (compiled[0], grammars().compile(schema=Person)):
        assert accepts(grammar, '{"name": "Tom", "age": 3}')
        assert not accepts(grammar, '{"name": "Tom", "age": -3}')
        assert not accepts(grammar, '{"name": "Tom"}')


def test_properties_come_in_the_order_of_the_schema() -> None:
    assert not accepts(grammars().compile(schema=PERSON), '{"age": 3, "name": "Tom"}')


@given(st.recursive(st.none() | st.integers() | st.text(st.sampled_from("a\"'é{")), lambda v: st.lists(v)))
def test_any_object_is_accepted_and_nothing_else(value: Any) -> None:
    grammar = grammars().compile(schema={"type": "object"})
    assert accepts(grammar, text_of({"a": value, "b": {"c": value}}))
    assert not accepts(grammar, text_of(value))


@pytest.mark.parametrize("space", ["", " ", "\n", "\n\n", "\n" + 20 * " ", "\n\n\t\t"])
def test_white_space_comes_between_two_parts(space: str) -> None:
    grammar = grammars().compile(schema=PERSON)
    assert accepts(grammar, "{" + space + '"name":' + space + '"Tom",' + space + '"age": 3' + space + "}")


@pytest.mark.parametrize("space", ["  ", "\t", "\n\n\n", "\n" + 21 * " ", " \n"])
def test_no_white_space_goes_on_without_end(space: str) -> None:
    grammar = grammars().compile(schema=PERSON)
    assert not accepts(grammar, "{" + space + '"name": "Tom", "age": 3}')


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "contains": {"type": "string"}}, "contains"),
        ({"if": {"type": "string"}, "then": {"maxLength": 3}}, "if"),
        ({"x-guidance": {"lenient": True}, "not": {"type": "string"}}, "not"),
        ({"x-guidance": {"coerce_one_of": True}, "oneOf": [{"maxLength": 5}, {"minLength": 3}]}, "oneOf"),
        ({"type": "string", "format": "unheard-of"}, "unheard-of"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "strin"}, "strin"),
        ({"$ref": "http://example.com/schema"}, "example.com"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"$ref": "#"}, "schema"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "type"),
        ('{"type": ', "not JSON"),
        ("[1]", "must be a JSON object"),
        ({"const": float("nan")}, "not JSON"),
        ({"const": {1, 2}}, "not JSON"),
        (3, "must be a JSON object"),
        (int, "pydantic"),
        ("", "not empty"),
    ],
)
def test_what_cannot_be_kept_to_the_letter_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        grammars().compile(schema=schema)
    assert str(raised.value).startswith("schema")
    assert "\n" not in str(raised.value)
