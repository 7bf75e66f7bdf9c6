"""Messages of a conversation, as real clients send them, in the form that mistral-common reads.

A version writes what its template has a place for; what has none is refused, and never left out:

    v1            no tools                 v1 to v11    no reasoning
    v2, v3        no text beside calls     v2           no two results of one message
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.content import read_content
from mistral_portable.tokenizer.tool_ids import map_ids
from mistral_portable.tokenizer.tools import check_call

__all__ = ["ROLES", "THINK_MARKERS", "read_messages"]

ROLES = ("system", "user", "assistant", "tool")
THINK_MARKERS = ("<think>", "</think>")
"""Around reasoning in versions without tokens for it, if the system message asks for them."""

_OTHER_NAMES = {"developer": "system"}
Message = dict[str, Any]


def read_messages(messages: Sequence[Mapping[str, Any]], version: str, *, reasons: bool) -> list[Message]:
    """New messages in OpenAI's format, which say the same and which mistral-common reads.

    - `developer` is system. A system message behind an assistant's or a tool's, where no template has a place, moves
      to the system messages at the beginning.
    - Content in parts becomes text, joined as mistral-common joins it: by an empty line, in v15 by nothing.
    - Null content of a tool is "". Blank content beside tool calls is none.
    - Calls in consecutive assistant messages become calls of one message. (mistral-common joins all other neighbours.)
    - Ids become 9 letters and digits (`map_ids`).
    - `reasoning` or `reasoning_content` becomes a thinking part before the text; where the version has none, and a
      system message spells THINK_MARKERS, text between these.

    version: of the chat template. reasons: whether it has a place for reasoning.

    Raises TokenizerError, in one line, for what is malformed, for images and audio, and for what the version has no
    place for.
    """
    if not messages:
        raise TokenizerError("the conversation is empty; pass at least one message")
    joint = "" if version == "v15" else "\n\n"
    read = [_read(message, f"message {index}", joint) for index, message in enumerate(messages)]
    if not reasons and any(message["role"] == "system" and _spells_markers(message["content"]) for message in read):
        read = [_with_markers(message) for message in read]
    for index, message in enumerate(read):
        _check_version(message, f"message {index}", version, reasons)
    map_ids(read, paired=version in ("v11", "v13", "v15"))
    return [_with_reasoning(message) for message in _merge_calls(_move_systems(read))]


def _read(message: object, where: str, joint: str) -> Message:
    if not isinstance(message, Mapping):
        raise TokenizerError(f"{where} is {message!r:.80}; pass a mapping with role and content")
    role = message.get("role")
    role = _OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise TokenizerError(f"{where} has the role {role!r:.80}; roles are {', '.join(ROLES)}")
    content, reasoning = read_content(message.get("content"), where, joint=joint)
    if role == "tool":
        own = {name: message[name] for name in ("tool_call_id", "name") if message.get(name) is not None}
        return {"role": role, "content": content or "", **own}
    if role == "assistant":
        return _read_assistant(message, content, reasoning, where)
    if content is None:
        raise TokenizerError(f"{where} has the content None; pass a string")
    if reasoning:
        raise TokenizerError(f"{where} has a part of reasoning; only an assistant reasons: leave it out")
    return {"role": role, "content": content}


def _read_assistant(message: Mapping[str, Any], content: str | None, reasoning: str, where: str) -> Message:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise TokenizerError(f"{where} has the tool_calls {calls!r:.80}; pass a list of mappings")
    for index, call in enumerate(calls):
        check_call(call, f"{where} call {index}")
    fields = [message[name] for name in ("reasoning", "reasoning_content") if message.get(name)]
    if not all(isinstance(field, str) for field in fields):
        raise TokenizerError(f"{where} has the reasoning {fields[0]!r:.80}; pass a string")
    if len({reasoning, *fields} - {""}) > 1:
        raise TokenizerError(f"{where} has reasoning twice, and not the same: pass one of the two")
    found: Message = {"role": "assistant", "content": content, "reasoning": fields[0] if fields else reasoning}
    if calls:
        found["tool_calls"] = [dict(call) for call in calls]
        found["content"] = content if content and content.strip() else None
    elif content is None and not found["reasoning"]:
        raise TokenizerError(f"{where} has the content None; pass a string")
    return found


def _check_version(message: Message, where: str, version: str, reasons: bool) -> None:
    fault = ""
    if version == "v1" and (message["role"] == "tool" or message.get("tool_calls")):
        fault = "tool calls or results"
    elif version in ("v2", "v3") and message.get("tool_calls") and message["content"]:
        fault = "text beside tool calls"
    elif message.get("reasoning") and not reasons:
        fault = "reasoning"
    if fault:
        raise TokenizerError(
            f"chat template {version}: {where} has {fault}, which {version} cannot write; leave it out"
        )


def _move_systems(messages: list[Message]) -> list[Message]:
    """The messages with system messages moved to the beginning from places where no template has any."""
    first, moved, rest = list[Message](), list[Message](), list[Message]()
    for message in messages:
        if message["role"] != "system":
            rest.append(message)
        elif not rest:
            first.append(message)
        else:
            (moved if rest[-1]["role"] in ("assistant", "tool") else rest).append(message)
    return [*first, *moved, *rest]


def _merge_calls(messages: list[Message]) -> list[Message]:
    """The messages with consecutive ones that call tools as one."""
    merged = list[Message]()
    for message in messages:
        if merged and message.get("tool_calls") and merged[-1].get("tool_calls"):
            last = merged[-1]
            last["content"] = "\n\n".join(filter(None, (last["content"], message["content"]))) or None
            last["reasoning"] = "\n\n".join(filter(None, (last["reasoning"], message["reasoning"])))
            last["tool_calls"] += message["tool_calls"]
        else:
            merged.append(message)
    return merged


def _spells_markers(text: str) -> bool:
    return all(marker in text for marker in THINK_MARKERS)


def _with_markers(message: Message) -> Message:
    """The message with reasoning as text before its content, as Magistral 2506 writes it."""
    if not message.get("reasoning"):
        return message
    begin, end = THINK_MARKERS
    text = f"{begin}\n{message['reasoning']}\n{end}\n\n{message['content'] or ''}".rstrip("\n")
    return {**message, "content": text, "reasoning": ""}


def _with_reasoning(message: Message) -> Message:
    """The message with reasoning as a part of its content, as mistral-common has it."""
    reasoning = message.pop("reasoning", "")
    if not reasoning:
        return message
    text = [{"type": "text", "text": message["content"]}] if message["content"] else []
    return {**message, "content": [{"type": "thinking", "thinking": reasoning}, *text]}
