"""Names of functions, as mistral-common's validator allows them (`_validate_function_call`)."""

import re
from typing import TypeGuard

__all__ = ["begins_name", "is_name"]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# Bounded: it is matched again with each token.
_BEGINNING = re.compile(r"\s{0,16}[a-zA-Z0-9_-]{0,64}\s{0,16}")


def is_name(text: object) -> TypeGuard[str]:
    """Whether this is the name of a function."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def begins_name(text: str) -> bool:
    """Whether the text, with white space around it, can become a name."""
    return _BEGINNING.fullmatch(text) is not None
