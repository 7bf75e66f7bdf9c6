"""JSON objects in text that arrives in pieces: where one ends, and whether it parses."""

import json
import re
from typing import Any

__all__ = ["ObjectText", "members"]

_SPACE = re.compile(r"[ \t\r\n]*")
_STEP = re.compile(r'["{}\[\]\\]')
_DECODER = json.JSONDecoder()


class ObjectText:
    """The text of one JSON object, which begins with the first character that is no white space.

    `text` is what there is of it so far. closed: whether its last brace has come. fault: why it is no JSON, "" while it
    may become some; whether the text between the braces parses is known when the last brace has come.
    """

    def __init__(self) -> None:
        self.closed = False
        self.fault = ""
        self._pieces: list[str] = []
        self._depth = 0  # of braces and brackets
        self._in_string = self._escaped = False

    @property
    def text(self) -> str:
        """The text so far, without white space before it."""
        return "".join(self._pieces)

    def push(self, text: str) -> tuple[str, str]:
        """Take more text, unless it is closed or faulty; return the part that belongs to the object, and the rest."""
        if not self._pieces:
            text = text[_end_of_space(text, 0) :]
            if not text:
                return "", ""
            if text[0] != "{":
                self.fault = "no JSON object"
                return "", text
        end = self._find_end(text)
        piece, rest = text[:end], text[end:]
        self._pieces.append(piece)
        if self.closed:
            self.fault = _fault(self.text)
        return piece, rest

    def _find_end(self, text: str) -> int:
        """The index behind the last brace, or behind the text."""
        at = 0
        if self._escaped and text:
            self._escaped, at = False, 1
        while found := _STEP.search(text, at):
            at = found.end()
            match found[0]:
                case "\\" if self._in_string:
                    self._escaped = at == len(text)
                    at += 1
                case '"':
                    self._in_string = not self._in_string
                case "{" | "[" if not self._in_string:
                    self._depth += 1
                case "}" | "]" if not self._in_string:
                    self._depth -= 1
                    if not self._depth:
                        self.closed = True
                        return at
        return len(text)


def members(text: str) -> dict[str, tuple[Any, str]]:
    """The members of an object whose text parses: each one's value, and its text as it stands there."""
    found = dict[str, tuple[Any, str]]()
    at = _end_of_space(text, 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        begin = _end_of_space(text, _end_of_space(text, at) + 1)  # behind the colon
        value, end = _DECODER.raw_decode(text, begin)
        found[key] = value, text[begin:end]
        at = _end_of_space(text, end)
        if text[at] == ",":
            at = _end_of_space(text, at + 1)
    return found


def _end_of_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()


def _fault(text: str) -> str:
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError as error:  # JSONDecodeError, and integers of too many digits
        return f"no JSON: {str(error).splitlines()[0]:.100}"
    except RecursionError:
        return "nested too deeply"
    return ""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON value")
