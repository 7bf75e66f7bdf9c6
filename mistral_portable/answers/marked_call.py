"""Calls of v11 and later, whose parts stand between markers, one [TOOL_CALLS] for each call.

    [TOOL_CALLS]weather[CALL_ID]AbCdEfGh1[ARGS]{"city": "Paris"}     v11; the id may be missing
    [TOOL_CALLS]weather[ARGS]{"city": "Paris"}                       v13, v15

Source: mistral-common's InstructTokenizerV11 and V13, `_encode_tool_calls_in_assistant_message`.
"""

import json

from mistral_portable.answers.deltas import CallArguments, CallBegin, CallEnd, CallFailed, Content, Delta
from mistral_portable.answers.json_text import ObjectText
from mistral_portable.answers.names import begins_name, is_name
from mistral_portable.answers.numbering import Numbering
from mistral_portable.answers.sections import AfterCalls

__all__ = ["MarkedCall"]


class MarkedCall:
    """The section of one call, whose arguments come in pieces, as the model writes them."""

    def __init__(self, numbering: Numbering, *, call_id: int | None, args: int | None) -> None:
        """call_id, args: the ids of [CALL_ID] and [ARGS]; None where the vocabulary has none."""
        self._numbering = numbering
        self._call_id = call_id
        self._args = args
        self._taken: list[str] = []  # all of the section's text
        self._name = self._id = ""
        self._part = "name"  # then "id", "arguments"; at the end "failed" or "complete"
        self._arguments = ObjectText()
        self._index: int | None = None  # of the call, once it has begun
        self._after = AfterCalls()

    def take(self, text: str) -> list[Delta]:
        """Take more text; return the beginning of the call, or a piece of its arguments."""
        if self._part == "complete":
            return self._after.take(text)
        if self._part == "failed":
            return [Content(text)]
        self._taken.append(text)
        if self._part == "name":
            self._name += text
            return [] if begins_name(self._name) else self._fail("what follows [TOOL_CALLS] is no function's name")
        if self._part == "id":
            self._id += text
            return [] if begins_name(self._id) else self._fail("what follows [CALL_ID] is no id")
        return self._take_arguments(text)

    def mark(self, token_id: int) -> list[Delta]:
        """Take [CALL_ID] or [ARGS]; other markers stand for nothing."""
        if self._part in ("complete", "failed") or token_id not in (self._call_id, self._args):
            return []
        order = {self._call_id: "id", self._args: "arguments"}
        part = order[token_id]
        if not is_name(self._name.strip()):
            return self._fail("what follows [TOOL_CALLS] is no function's name")
        if self._part == "arguments" or self._part == part:
            return self._fail("its markers are out of order")
        self._part = part
        return []

    def end(self) -> list[Delta]:
        """Return the text, as content, if it is no complete call."""
        if self._part in ("complete", "failed"):
            return []
        return self._fail("the arguments are cut off" if self._index is not None else "it has no arguments")

    def _take_arguments(self, text: str) -> list[Delta]:
        piece, rest = self._arguments.push(text)
        if self._arguments.fault:
            return self._fail(f"the arguments are {self._arguments.fault}")
        found = list[Delta]()
        if piece and self._index is None:
            self._index, id = self._numbering.next(self._id.strip())
            found.append(CallBegin(self._index, id, self._name.strip()))
        if piece and self._index is not None:
            found.append(CallArguments(self._index, piece))
            if self._arguments.closed:
                self._part = "complete"
                found.append(CallEnd(self._index))
                found += self._after.take(rest) if rest else []
        return found

    def _fail(self, reason: str) -> list[Delta]:
        number = self._numbering.count if self._index is None else self._index
        name = f" {json.dumps(self._name.strip())}" if is_name(self._name.strip()) else ""
        self._part = "failed"
        failed = list[Delta]([CallFailed(self._index, f"call {number}{name}: {reason}")])
        text = "".join(self._taken)
        return [*failed, Content(text)] if text else failed
