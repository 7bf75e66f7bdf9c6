"""Ids of tool calls and results in a conversation, in the form that Mistral's templates ask for."""

from collections.abc import Iterable
from typing import Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.call_ids import is_call_id, make_call_id

__all__ = ["map_ids"]

Message = dict[str, Any]
_NONE = ("", "null", None)  # "null" is what mistral-common writes where there is no id


def map_ids(messages: Iterable[Message], *, paired: bool) -> None:
    """Give every call and every result of a conversation an id of 9 letters and digits, in place.

    An id of this form stays. Any other is mapped, always to the same one, and two of a conversation to different ones.
    A call without an id gets one; a result without an id is that of the first call before it that has none, by its name
    where it has one, and a result without a name gets that of its call.

    paired: whether each result must have the id of a call that waits for it.

    Raises TokenizerError for an id that is no text, and for a result that no call waits for, if it has no id or must be
    paired.
    """
    found = list(messages)
    ids = _Mapping(found)
    waiting = list[Message]()  # calls of the last assistant messages that have no result yet
    before = ""
    for index, message in enumerate(found):
        role = message["role"]
        if role == "assistant":
            made = message.get("tool_calls") or []
            for number, call in enumerate(made):
                call["id"] = ids.of(call.get("id"), f"message {index} call {number}")
            waiting = [*waiting, *made] if before == role else list(made)
        elif role == "tool":
            written = message.get("tool_call_id")
            call = _name_result(message, waiting, ids, f"message {index}")
            if call is None and paired:
                raise TokenizerError(f"message {index} is a result of the call {written!r:.80}, but none waits for one")
        before = role


def _name_result(message: Message, waiting: list[Message], ids: "_Mapping", where: str) -> Message | None:
    """Give a result its id and its name; return the call that it belongs to, which waits no more."""
    id, name = message.get("tool_call_id"), message.get("name")
    if id in _NONE:
        call = next((call for call in waiting if name in (None, _name(call))), None)
        if call is None:
            raise TokenizerError(f"{where} is a tool result without tool_call_id, and no call waits for one: add it")
        message["tool_call_id"] = call["id"]
    else:
        message["tool_call_id"] = ids.of(id, where)
        call = next((call for call in waiting if call["id"] == message["tool_call_id"]), None)
    if call is not None:
        waiting.remove(call)
        message["name"] = name or _name(call)
    return call


def _name(call: Message) -> Any:
    function = call.get("function")
    return function.get("name") if isinstance(function, dict) else None


class _Mapping:
    """The ids of one conversation. Those that have the right form already are given to nobody else."""

    def __init__(self, messages: Iterable[Message]) -> None:
        written = [message.get("tool_call_id") for message in messages]
        written += [call.get("id") for message in messages for call in message.get("tool_calls") or []]
        self._taken = {id for id in written if isinstance(id, str) and is_call_id(id)}
        self._mapped: dict[str, str] = {}

    def of(self, id: object, where: str) -> str:
        """The id in Mistral's form. where: names the place in errors, and stands for an id that is missing."""
        if id not in _NONE and not isinstance(id, str):
            raise TokenizerError(f"{where} has the id {id!r:.40}; pass a string")
        if isinstance(id, str) and is_call_id(id):
            return id
        source = f"id {id}" if id not in _NONE else f"place {where}"
        if source not in self._mapped:
            self._mapped[source] = make_call_id(source.encode(errors="surrogatepass"), self._taken)
            self._taken.add(self._mapped[source])
        return self._mapped[source]
