"""Messages of a chat in an order that more chat templates take, and results of tools with the names of their calls."""

from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["in_plain_order", "name_results"]

_JOINT = "\n\n"  # as mistral-common joins neighbours
Message = dict[str, Any]


def in_plain_order(messages: Sequence[Message]) -> list[Message]:
    """The messages with those of the system first, and neighbours of one role as one, joined by an empty line.

    Messages with calls or reasoning and results of tools are not joined.
    """
    system = [message for message in messages if message["role"] == "system"]
    return list(_joined([*system, *(message for message in messages if message["role"] != "system")]))


def _joined(messages: Sequence[Message]) -> Iterator[Message]:
    kept: Message | None = None
    for message in messages:
        if kept is None:
            kept = message
        elif kept["role"] == message["role"] and _is_text(kept) and _is_text(message):
            kept = kept | {"content": kept["content"] + _JOINT + message["content"]}
        else:
            yield kept
            kept = message
    if kept is not None:
        yield kept


def _is_text(message: Message) -> bool:
    return message.keys() == {"role", "content"} and message["role"] != "tool"


def name_results(messages: Sequence[Message]) -> list[Message]:
    """The messages with a name for each result of a tool: its own, or that of the call before it with its id."""
    names = dict[Any, Any]()
    found = list[Message]()
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call.get("function")
            if isinstance(call.get("id"), str) and isinstance(function, dict):
                names[call["id"]] = function.get("name")
        id = message.get("tool_call_id")
        name = names.get(id) if isinstance(id, str) else None
        wants = message["role"] == "tool" and "name" not in message and name is not None
        found.append(message | {"name": name} if wants else message)
    return found
