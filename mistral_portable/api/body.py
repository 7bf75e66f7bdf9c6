"""Bodies of requests, checked by pydantic: a wrong one is an InputError that names each path, value and rule."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, ErrorDetails

from mistral_portable.errors import InputError

__all__ = ["JSON", "Body", "Many", "Stop", "Stops", "check_body", "parse_body"]

JSON = dict[str, Any]
"""An object of a body."""

Item = TypeVar("Item")
Many = Annotated[list[Item], Field(fail_fast=True)]
"""A list whose first wrong item ends the check: a hostile body would have a million of them."""

Stop = Annotated[str, Field(max_length=256)]
Stops = Annotated[Many[Stop], Field(max_length=16)]
"""Stop strings, few and short: to look for them takes time for each token."""

_MOST_FAULTS = 5
_SHOWN = 60  # characters of a wrong value
_SAID = 200  # characters of a rule, which may repeat the value

B = TypeVar("B", bound=BaseModel)


class Body(BaseModel):
    """An object in a body. Types are strict: "5" is no number. Unknown fields are ignored, as clients send more of them
    with every version. A field that is null has its default."""

    model_config = ConfigDict(strict=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data

    def given(self, *names: str) -> JSON:
        """Those of the fields that the body has, by name."""
        return {name: getattr(self, name) for name in names if name in self.model_fields_set}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JSON:
        """The schema, in which fields that may be left out may be null."""
        schema = handler(core)
        described = handler.resolve_ref_schema(schema)
        for name, field in described.get("properties", {}).items():
            if name not in described.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
                described["properties"][name] = {"anyOf": [field, {"type": "null"}]}
        return schema


def check_body(kind: type[B], body: object) -> B:
    """Check a parsed JSON body. Raises InputError, in one line:

    messages.0.content.2.text: Input should be a valid string, got 5
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise InputError(_wrong(error, body)) from error


def parse_body(kind: type[B], data: bytes | bytearray) -> B:
    """Parse and check JSON. Raises InputError, as `check_body` does."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            body = None
        raise InputError(_wrong(error, body)) from error


def _wrong(error: ValidationError, body: object) -> str:
    errors = error.errors(include_url=False, include_context=False)
    found = [_fault(one, body) for one in errors[:_MOST_FAULTS]]
    more = [f"and {len(errors) - _MOST_FAULTS} more"] if len(errors) > _MOST_FAULTS else []
    return " ".join("; ".join([*dict.fromkeys(found), *more]).split())


def _fault(one: ErrorDetails, body: object) -> str:
    """An error's place, rule and value. One of JSON has its place in the text, and no value."""
    value = "" if one["type"] == "json_invalid" else f", got {one['input']!r:.{_SHOWN}}"
    return f"{_path(one['loc'], body, names_missing=one['type'] == 'missing')}: {one['msg']:.{_SAID}}{value}"


def _path(location: Sequence[int | str], body: object, *, names_missing: bool) -> str:
    """A place in a body: messages.0.role. names_missing: whether its last part is a field that is not there.

    Pydantic also names what a value was checked as, which is no part of the path: a block's "type", given or not, and
    the kinds of a union, such as "list[str]".
    """
    parts: list[str] = []
    place, entered = body, False
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        if not isinstance(part, int) and not _is_field(part, place, is_last and names_missing):
            continue
        if isinstance(place, Mapping) and not (entered or is_last) and _is_tag(part, location[index + 1], place):
            entered = True
            continue
        parts.append(str(part))
        place, entered = _inside(place, part), False
    return ".".join(parts) or "body"


def _is_field(part: str, place: object, is_missing: bool) -> bool:
    return isinstance(place, Mapping) and (part in place or is_missing)


def _is_tag(part: int | str, following: int | str, place: Mapping[str, object]) -> bool:
    """Whether a name that the object has is that of its type, and not of the field."""
    # {"type": "json_schema", "json_schema": {...}}: a block would be named twice, by its type and by the field.
    is_field = isinstance(place.get(str(part)), Mapping) and following != part
    return place.get("type") == part and not is_field


def _inside(place: object, part: int | str) -> object:
    if isinstance(place, Mapping):
        return place.get(part)
    if isinstance(place, Sequence) and not isinstance(place, str) and isinstance(part, int) and part < len(place):
        return place[part]
    return None
