"""Bodies of requests, checked by pydantic: a wrong one is an InputError that names each path, value and rule."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mistral_portable.errors import InputError

__all__ = ["JSON", "Body", "check_body"]

JSON = dict[str, Any]
"""An object of a body."""

_MOST_FAULTS = 8
_SHOWN = 60  # characters of a wrong value

B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """An object in a body. Types are strict: "5" is no number. Unknown fields are ignored, as clients send more of them
    with every version."""

    model_config = ConfigDict(strict=True, extra="ignore")


def check_body(kind: type[B], body: object) -> B:
    """Check a parsed JSON body. Raises InputError, in one line:

    messages.0.content.2.text: Input should be a valid string, got 5
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        found = [f"{_path(one['loc'], body)}: {one['msg']}, got {one['input']!r:.{_SHOWN}}" for one in errors]
        more = [f"and {len(found) - _MOST_FAULTS} more"] if len(found) > _MOST_FAULTS else []
        raise InputError("; ".join([*found[:_MOST_FAULTS], *more])) from error


def _path(location: Sequence[int | str], body: object) -> str:
    """A place in a body: messages.0.role. Pydantic names a block by its "type", too, which is no part of the path."""
    parts: list[str] = []
    place, entered = body, False
    for part in location:
        if not entered and isinstance(place, Mapping) and place.get("type") == part:
            entered = True
            continue
        parts.append(str(part))
        place, entered = _inside(place, part), False
    return ".".join(parts) or "body"


def _inside(place: object, part: int | str) -> object:
    if isinstance(place, Mapping):
        return place.get(part)
    if isinstance(place, Sequence) and not isinstance(place, str) and isinstance(part, int) and part < len(place):
        return place[part]
    return None
