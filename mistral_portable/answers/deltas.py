"""Deltas: the parts of an answer in the order in which they become certain, and the tool calls that they add up to."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "CallArguments",
    "CallBegin",
    "CallEnd",
    "CallFailed",
    "Content",
    "Delta",
    "Parts",
    "Reasoning",
    "ToolCall",
    "join_deltas",
]


@dataclass(frozen=True)
class Content:
    """A piece of the answer's text; never empty."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """A piece of what the model has thought before it answers; never empty."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """The beginning of a tool call. index: 0 for the answer's first call, then 1, and so on. id: 9 letters and digits,
    unique in the answer. name: the function's."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the JSON text of a call's arguments; never empty. All pieces of a call together are an object."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """The end of the call with this index: its arguments are a JSON object, and it does not fail."""

    index: int


@dataclass(frozen=True)
class CallFailed:
    """The call that began with this index is none: its arguments are no JSON object, or were cut off.

    reason: one line, such as 'call 0 "weather": the arguments are cut off'. The text of the call follows, all of it, as
    Content, so that nothing of the answer is lost. index: that of a CallBegin; None where none was given, because the
    fault was found before. Whoever has shown parts of the call already tells its reader by the finish reason: an answer
    without any call ends with "stop" or "length", not with "tool_calls".
    """

    index: int | None
    reason: str


Delta = Content | Reasoning | CallBegin | CallArguments | CallEnd | CallFailed


@dataclass(frozen=True)
class ToolCall:
    """A call of a function. id: 9 letters and digits. arguments: the text of a JSON object, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Parts:
    """An answer in its parts. text: the content. call_error: why something that began as a call is content; "" if
    nothing is."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    call_error: str = ""


def join_deltas(deltas: Iterable[Delta]) -> Parts:
    """Join deltas into the parts of the answer so far. A call that has begun and not failed counts."""
    content, reasoning, errors = list[str](), list[str](), list[str]()
    calls = dict[int, ToolCall]()
    arguments = dict[int, list[str]]()
    for delta in deltas:
        match delta:
            case Content(text):
                content.append(text)
            case Reasoning(text):
                reasoning.append(text)
            case CallBegin(index, id, name):
                calls[index], arguments[index] = ToolCall(id, name, ""), []
            case CallArguments(index, text):
                arguments[index].append(text)
            case CallFailed(index, reason):
                errors.append(reason)
                if index is not None:
                    del calls[index]
    made = (ToolCall(call.id, call.name, "".join(arguments[index])) for index, call in calls.items())
    return Parts("".join(content), "".join(reasoning), tuple(made), "; ".join(errors))
