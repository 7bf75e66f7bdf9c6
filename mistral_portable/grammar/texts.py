"""Checks the texts of schemas, grammars and regular expressions before llguidance sees them."""

import json
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from mistral_portable.errors import InputError

__all__ = ["MOST_BYTES", "Schema", "checked_text", "schema_text"]

Schema = Mapping[str, Any] | str | type
"""A JSON schema: a mapping, its JSON text, or a pydantic model class."""

MOST_BYTES = 1 << 16
"""The largest schema, grammar or regular expression: UTF-8 bytes, of a schema as compact JSON."""

_MOST_DEPTH = 100  # objects and lists within each other; llguidance reads up to 128, its own around a schema included


def schema_text(schema: Schema, name: str = "schema") -> str:
    """Return a schema as compact JSON, its keys in their order, which is the order of an answer's properties.

    Raises InputError, with its name, if it is no JSON object, or larger or deeper than the bounds.
    """
    if isinstance(schema, type):
        schema = _of_class(schema)
    try:
        value = json.loads(checked_text(name, schema)) if isinstance(schema, str) else schema
        if not isinstance(value, Mapping):
            raise InputError(f"{name}={schema!r:.80} must be a JSON object, its text, or a pydantic model class")
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except InputError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{name}={schema!r:.80} is not JSON: {error}") from error
    if _depth(text) > _MOST_DEPTH:
        raise InputError(f"{name}={schema!r:.80} is nested deeper than {_MOST_DEPTH} levels: use $ref, or less depth")
    return checked_text(name, text)


def checked_text(name: str, text: object) -> str:
    """Return the text. Raises InputError if it is empty, no text, or larger than MOST_BYTES."""
    if not isinstance(text, str) or not text:
        raise InputError(f"{name}={text!r:.80} must be a text that is not empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"{name} holds half a surrogate pair at index {error.start}: remove it") from error
    if size > MOST_BYTES:
        raise InputError(f"{name} has {size} bytes, the most are {MOST_BYTES}: make it smaller")
    return text


def _of_class(model: type) -> Mapping[str, Any]:
    """The JSON schema of a pydantic model."""
    from pydantic import BaseModel  # slow to import
    from pydantic.errors import PydanticUserError

    if not issubclass(model, BaseModel):
        raise InputError(f"schema={model!r:.80} must be a JSON object, its text, or a pydantic model class")
    try:
        return model.model_json_schema()
    except PydanticUserError as error:
        raise InputError(f"schema={model!r:.80} has no JSON schema: {str(error).splitlines()[0]}") from error


def _depth(text: str) -> int:
    """The depth of objects and lists within each other in a JSON text."""
    structure = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    return max(accumulate((character in "[{") - (character in "]}") for character in structure))
