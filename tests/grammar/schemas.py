"""Draws JSON schemas, and for each one values that are valid or nearly so."""

import json
from typing import Any

from hypothesis import strategies as st

Drawn = tuple[dict[str, Any], "st.SearchStrategy[Any]"]
"""A schema and its valid values, objects with their properties in the schema's order."""

TEXT = st.text(st.sampled_from('ab c1"\\/é😀\n{}[],:'), max_size=12)
PATTERNS = (r"^[a-c]{2,4}$", r"^(yes|no)$", r"^[0-9]{3}-[0-9]{2}$", r"^a[^b]*b$", r"^[A-Z][a-z]+( [A-Z][a-z]+)?$")
SCALARS = st.none() | st.booleans() | st.integers(-50, 50) | st.just(0.5) | TEXT
TREE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/tree"}},
    "required": ["v"],
    "additionalProperties": False,
}


@st.composite
def schemas(draw: st.DrawFn) -> Drawn:
    """Draw a schema and the strategy of its values."""
    schema, values = draw(_nodes(3))
    return schema | {"$defs": {"tree": TREE, "short": {"type": "string", "maxLength": 3}}}, values


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], Any]:
    """Draw a schema, and a value that is valid, or was so before it was changed, or is any other one."""
    schema, values = draw(schemas())
    value = draw(values)
    return schema, draw(st.one_of(st.just(value), _changed(value), SCALARS))


def text_of(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _nodes(depth: int) -> "st.SearchStrategy[Drawn]":
    leaves = st.one_of(_integers(), _numbers(), _strings(), _patterns(), _enums(), _refs(), _simple())
    return leaves if not depth else st.one_of(leaves, _arrays(depth), _objects(depth), _any_of(depth))


@st.composite
def _simple(draw: st.DrawFn) -> Drawn:
    return draw(st.sampled_from([({"type": "boolean"}, st.booleans()), ({"type": "null"}, st.none())]))


@st.composite
def _integers(draw: st.DrawFn) -> Drawn:
    low, size = draw(st.integers(-40, 40)), draw(st.integers(0, 60))
    if draw(st.booleans()):
        return {"type": "integer", "exclusiveMinimum": low - 1, "maximum": low + size}, st.integers(low, low + size)
    return {"type": "integer", "minimum": low}, st.integers(low, low + 10**6)


@st.composite
def _numbers(draw: st.DrawFn) -> Drawn:
    low = draw(st.integers(-20, 20))
    values = st.integers(4 * low, 4 * low + 80).map(lambda quarters: quarters / 4 if quarters % 4 else quarters // 4)
    return {"type": "number", "minimum": low, "maximum": low + 20}, values


@st.composite
def _strings(draw: st.DrawFn) -> Drawn:
    least, more = draw(st.integers(0, 4)), draw(st.integers(0, 6))
    values = st.text(st.sampled_from("ab1 é😀"), min_size=least, max_size=least + more)
    return {"type": "string", "minLength": least, "maxLength": least + more}, values


@st.composite
def _patterns(draw: st.DrawFn) -> Drawn:
    pattern = draw(st.sampled_from(PATTERNS))
    alphabet = st.sampled_from("abcdeYesno0123456789- XZ")
    return {"type": "string", "pattern": pattern}, st.from_regex(pattern, fullmatch=True, alphabet=alphabet)


@st.composite
def _enums(draw: st.DrawFn) -> Drawn:
    values = draw(st.lists(SCALARS, min_size=1, max_size=4, unique_by=text_of))
    if len(values) == 1:
        return {"const": values[0]}, st.just(values[0])
    return {"enum": values}, st.sampled_from(values)


@st.composite
def _refs(draw: st.DrawFn) -> Drawn:
    trees = st.recursive(
        st.integers(-9, 9).map(lambda v: {"v": v}),
        lambda below: st.builds(lambda v, tree: {"v": v, "next": tree}, st.integers(-9, 9), below),
        max_leaves=3,
    )
    short = st.text(st.sampled_from("ab"), max_size=3)
    kinds: list[Drawn] = [({"$ref": "#/$defs/tree"}, trees), ({"$ref": "#/$defs/short"}, short)]
    return draw(st.sampled_from(kinds))


@st.composite
def _arrays(draw: st.DrawFn, depth: int) -> Drawn:
    items, values = draw(_nodes(depth - 1))
    least, more = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    schema = {"type": "array", "items": items, "minItems": least, "maxItems": least + more}
    return schema, st.lists(values, min_size=least, max_size=least + more)


@st.composite
def _objects(draw: st.DrawFn, depth: int) -> Drawn:
    names = draw(st.lists(st.sampled_from(["name", "age", "a b", "é", 'q"']), max_size=3, unique=True))
    nodes = {name: draw(_nodes(depth - 1)) for name in names}
    required = [name for name in names if draw(st.booleans())]
    schema = {
        "type": "object",
        "properties": {name: own for name, (own, _) in nodes.items()},
        "required": required,
        "additionalProperties": False,
    }
    return schema, _members({name: values for name, (_, values) in nodes.items()}, required)


@st.composite
def _members(draw: st.DrawFn, values: "dict[str, st.SearchStrategy[Any]]", required: list[str]) -> dict[str, Any]:
    return {name: draw(own) for name, own in values.items() if name in required or draw(st.booleans())}


@st.composite
def _any_of(draw: st.DrawFn, depth: int) -> Drawn:
    nodes = [draw(_nodes(depth - 1)) for _ in range(draw(st.integers(1, 3)))]
    return {"anyOf": [schema for schema, _ in nodes]}, st.one_of([values for _, values in nodes])


@st.composite
def _changed(draw: st.DrawFn, value: Any) -> Any:
    """Draw a value with a part of it replaced, left out, repeated or added."""
    if isinstance(value, list) and value and draw(st.booleans()):
        place = draw(st.integers(0, len(value) - 1))
        part = [] if draw(st.booleans()) else [draw(_changed(value[place]))] * draw(st.integers(1, 2))
        return [*value[:place], *part, *value[place + 1 :]]
    if isinstance(value, dict) and value and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(value)))
        if draw(st.booleans()):
            return {key: own for key, own in value.items() if key != name}
        return value | {name: draw(_changed(value[name]))}
    if isinstance(value, dict) and draw(st.booleans()):
        return value | {"other": 1}
    if isinstance(value, int) and not isinstance(value, bool) and draw(st.booleans()):
        return value + draw(st.integers(-100, 100))
    if isinstance(value, str) and draw(st.booleans()):
        return value + draw(TEXT)
    return draw(SCALARS)
