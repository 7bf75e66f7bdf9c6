"""Calls of v2 to v7: a JSON list behind [TOOL_CALLS].

    [TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}, "id": "AbCdEfGh1"}, ...]

v2 writes no ids. Source: mistral-common's InstructTokenizerV2 and V3, `_encode_tool_calls_in_assistant_message`.
"""

import json

from mistral_portable.answers.deltas import CallArguments, CallBegin, CallEnd, CallFailed, Content, Delta
from mistral_portable.answers.json_text import ObjectText, members
from mistral_portable.answers.names import is_name
from mistral_portable.answers.numbering import Numbering
from mistral_portable.answers.sections import AfterCalls

__all__ = ["CallList"]


class CallList:
    """The section of a list of calls.

    A call comes when its object is complete, in one piece: its id is written last. Where the text is no list of calls,
    what has not become a call is content.
    """

    def __init__(self, numbering: Numbering) -> None:
        self._numbering = numbering
        self._pending: list[str] = []  # text that belongs to no complete call
        self._expected = "["
        self._element = ObjectText()
        self._failed = False
        self._after: AfterCalls | None = None

    def take(self, text: str) -> list[Delta]:
        """Take more text; return the calls that are complete now."""
        if self._after is not None:
            return self._after.take(text)
        if self._failed:
            return [Content(text)]
        self._pending.append(text)
        found = list[Delta]()
        while text and not self._failed and self._after is None:
            text = self._take_element(text, found) if self._expected == "{" else self._take_mark(text, found)
        if self._after is not None and text:
            found += self._after.take(text)
        return found

    def mark(self, token_id: int) -> list[Delta]:
        """Ignore it: these versions have no markers within calls."""
        return []

    def end(self) -> list[Delta]:
        """Return what has not become a call."""
        if self._failed or self._after is not None:
            return []
        return self._fail("the list is cut off")

    def _take_mark(self, text: str, found: list[Delta]) -> str:
        """Take a bracket or comma from the beginning of the text; return the rest."""
        text = text.lstrip()
        if not text:
            return ""
        if text[0] not in self._expected:
            found += self._fail(f"{text[0]!r} instead of {' or '.join(self._expected)}")
        elif text[0] == "]":
            self._after = AfterCalls()
        else:
            self._expected = "{"
        return text[1:]

    def _take_element(self, text: str, found: list[Delta]) -> str:
        """Take a call's object, or a part of it, from the beginning of the text; return the rest."""
        element = self._element
        _, rest = element.push(text)
        if element.fault:
            found += self._fail(element.fault)
        elif element.closed:
            found += self._call(element.text)
            if not self._failed:
                self._pending, self._expected, self._element = [rest], ",]", ObjectText()
        return rest

    def _call(self, text: str) -> list[Delta]:
        found = members(text)
        name, _ = found.get("name", (None, ""))
        arguments, written = found.get("arguments", (None, ""))
        if not is_name(name):
            return self._fail(f"the name {json.dumps(name)[:80]} is none of a function")
        if not isinstance(arguments, dict):
            return self._fail(f'"{name}": the arguments are no JSON object')
        index, id = self._numbering.next(found.get("id", (None, ""))[0])
        return [CallBegin(index, id, name), CallArguments(index, written), CallEnd(index)]

    def _fail(self, reason: str) -> list[Delta]:
        self._failed = True
        failed = list[Delta]([CallFailed(None, f"call {self._numbering.count}: {reason}")])
        text = "".join(self._pending)
        return [*failed, Content(text)] if text else failed
