"""Ids of tool calls: 9 letters and digits, which Mistral's chat templates ask for."""

import re
from collections.abc import Collection
from hashlib import sha256

__all__ = ["is_call_id", "make_call_id"]

_LENGTH = 9
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CALL_ID = re.compile(f"[{_LETTERS}]{{{_LENGTH}}}")


def is_call_id(text: object) -> bool:
    """Whether this is the id of a call in Mistral's form."""
    return isinstance(text, str) and _CALL_ID.fullmatch(text) is not None


def make_call_id(source: bytes, taken: Collection[str] = ()) -> str:
    """An id that depends on `source` alone, unless it is one of `taken`: then on the number of trials, too."""
    trial = 0
    while (found := _letters(sha256(source + trial.to_bytes(4, "little")).digest())) in taken:
        trial += 1
    return found


def _letters(digest: bytes) -> str:
    number = int.from_bytes(digest, "little")
    digits = list[str]()
    for _ in range(_LENGTH):
        number, digit = divmod(number, len(_LETTERS))
        digits.append(_LETTERS[digit])
    return "".join(digits)
