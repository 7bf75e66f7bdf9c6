"""Encodes a conversation with mistral-common's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mistral_portable.errors import TokenizerError

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

__all__ = ["ROLES", "encode_chat", "one_line"]

ROLES = ("system", "user", "assistant", "tool")


def encode_chat(
    mistral: MistralTokenizer[Any, Any, Any, Any, Any],
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
) -> list[int]:
    """The ids of a conversation; `Tokenizer.chat` documents messages, tools and errors."""
    _check(messages, tools or ())
    from mistral_common.protocol.instruct.messages import AssistantMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    try:
        request: ChatCompletionRequest[Any] = ChatCompletionRequest.from_openai(
            [dict(message) for message in messages], [dict(tool) for tool in tools or ()] or None
        )
        if isinstance(request.messages[-1], AssistantMessage):
            request.messages[-1].prefix = True
        tokens: list[int] = mistral.encode_chat_completion(request).tokens
    except Exception as error:  # its own errors, pydantic's, AssertionError, KeyError, UnicodeEncodeError, ...
        raise TokenizerError(f"chat template {mistral.version.value}: {one_line(error)}") from error
    return tokens


def _check(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> None:
    """Raise TokenizerError, in one line, for malformed messages and tools, and for images and audio."""
    if not messages:
        raise TokenizerError("the conversation is empty; pass at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TokenizerError(f"message {index} is {message!r}; pass a mapping with role and content")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise TokenizerError(f"message {index} has the role {role!r}; roles are {', '.join(ROLES)}")
        if not (isinstance(content, str) or (content is None and message.get("tool_calls"))):
            raise TokenizerError(f"message {index} has the content {content!r:.80}; pass a string")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise TokenizerError(f"tool {index} is {tool!r}; pass a mapping with type and function")


def one_line(error: Exception) -> str:
    """The message of an error of mistral-common or pydantic, in one line."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join([error.title, *map(str, first['loc'])])}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return " ".join(str(error).split())
