"""Token ids of a conversation, by mistral-common's chat templates."""

from collections.abc import Mapping, Sequence
from typing import Any

from mistral_portable.errors import InputError, TokenizerError
from mistral_portable.tokenizer.common import CommonTokenizer
from mistral_portable.tokenizer.faults import one_line
from mistral_portable.tokenizer.messages import ROLES

__all__ = ["chat_ids", "checked_tools", "is_batch"]

UNREADABLE = ("image", "image_url", "audio", "audio_url", "input_audio")


def is_batch(conversation: Any) -> bool:
    """Whether this is a list of conversations rather than one. Raises InputError if it is empty or no list."""
    if not isinstance(conversation, list | tuple) or not conversation:
        raise InputError(f"the conversation is {conversation!r:.80}; pass a list of messages")
    return isinstance(conversation[0], list | tuple)


def chat_ids(
    tokenizer: CommonTokenizer,
    messages: Sequence[Any],
    tools: Sequence[Any] | None,
    continue_final_message: bool,
    *,
    mends: bool,
    request: Mapping[str, Any],
) -> list[int]:
    """Encode a conversation; see `MistralCommonTokenizer.apply_chat_template` for the arguments.

    mends: whether what mistral-common does not read, but other clients send, is encoded as `Tokenizer.chat` does.
    request: further fields of mistral-common's request, such as reasoning_effort; nothing is mended beside them.

    Raises InputError for malformed messages and tools, and for a model whose template or tokens are not Mistral's;
    MistralCommonException where the template forbids the conversation.
    """
    if not tokenizer.chats:
        raise InputError("the model's chat template is not Mistral's, or its tokens are not: use AutoTokenizer")
    if not isinstance(messages, list | tuple):
        raise InputError(f"the conversation is {messages!r:.80}; pass a list of messages")
    try:
        return _strict_ids(tokenizer, messages, tools, continue_final_message, request)
    except Exception:
        plain = mends and not request
        mended = _mended_ids(tokenizer, messages, tools, continue_final_message) if plain else None
        if mended is None:
            raise
        return mended


def _strict_ids(
    tokenizer: CommonTokenizer,
    messages: Sequence[Any],
    tools: Sequence[Any] | None,
    continue_final_message: bool,
    more: Mapping[str, Any],
) -> list[int]:
    """The ids of what mistral-common reads, as transformers calls it."""
    from mistral_common.exceptions import MistralCommonException
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    checked = [_message(index, message) for index, message in enumerate(messages)]
    read_tools = None if tools is None else checked_tools(tools)
    try:
        request: ChatCompletionRequest[Any] = ChatCompletionRequest.from_openai(
            checked, read_tools, continue_final_message, **more
        )
        return list(tokenizer.mistral.encode_chat_completion(request).tokens)
    except MistralCommonException as error:  # transformers lets it through, too
        if "\n" in str(error):
            raise type(error)(one_line(error)) from error
        raise
    except Exception as error:  # pydantic's, AssertionError, KeyError, UnicodeEncodeError, ...
        raise InputError(f"chat template {tokenizer.version}: {one_line(error)}") from error


def _mended_ids(
    tokenizer: CommonTokenizer, messages: Sequence[Any], tools: Sequence[Any] | None, continue_final_message: bool
) -> list[int] | None:
    """The ids of messages in other clients' forms; None if these, too, are refused."""
    last = messages[-1] if messages else None
    if continue_final_message != (isinstance(last, Mapping) and last.get("role") == "assistant"):
        return None
    try:
        return tokenizer.chat(messages, tools=tools)
    except TokenizerError:
        return None


def _message(index: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"message {index} is {message!r:.80}; pass a mapping with role and content")
    if message.get("role") not in (*ROLES, "developer"):
        raise InputError(f"message {index} has the role {message.get('role')!r:.80}; roles are {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list | tuple):
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind in UNREADABLE:
                raise InputError(f"message {index} has a part of the type {kind!r}; no model here reads it, only text")
            if kind is None:
                raise InputError(f"message {index} has the part {part!r:.80}; pass a mapping with type and text")
    elif not (isinstance(content, str) or (content is None and message.get("tool_calls"))):
        raise InputError(f"message {index} has the content {content!r:.80}; pass a string")
    return dict(message)


def checked_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """The tools, if each is a mapping. Raises InputError for others, such as functions."""
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise InputError(f"tool {index} is {tool!r:.80}; pass its JSON schema, a mapping with type and function")
    return [dict(tool) for tool in tools]
