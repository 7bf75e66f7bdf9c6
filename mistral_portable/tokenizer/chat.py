"""Encodes a conversation with mistral-common's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.faults import one_line
from mistral_portable.tokenizer.messages import read_messages
from mistral_portable.tokenizer.settings_template import knows_efforts
from mistral_portable.tokenizer.tools import check_tools, schema_fault

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

__all__ = ["encode_chat"]


def encode_chat(
    mistral: MistralTokenizer[Any, Any, Any, Any, Any],
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    reasoning_effort: str | None = None,
) -> list[int]:
    """The ids of a conversation; `Tokenizer.chat` documents messages, tools, reasoning_effort and errors."""
    version = str(mistral.version.value)
    if reasoning_effort is not None and not knows_efforts(mistral):
        raise TokenizerError(f"chat template {version} of this model knows no reasoning_effort; leave it out")
    reasons = getattr(mistral.instruct_tokenizer, "BEGIN_THINK", None) is not None
    try:
        read = read_messages(messages, version, reasons=reasons)
        check_tools(tools or (), version)
    except RecursionError as error:  # where a message of an error shows a value
        raise TokenizerError("the messages or tools are nested too deeply; send plainer ones") from error
    from mistral_common.protocol.instruct.messages import AssistantMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    try:
        request: ChatCompletionRequest[Any] = ChatCompletionRequest.from_openai(
            read, [dict(tool) for tool in tools or ()] or None, reasoning_effort=reasoning_effort
        )
        if isinstance(request.messages[-1], AssistantMessage):
            request.messages[-1].prefix = True
        tokens: list[int] = mistral.encode_chat_completion(request).tokens
    except Exception as error:  # its own errors, pydantic's, AssertionError, KeyError, UnicodeEncodeError, ...
        fault = schema_fault(tools or ()) or one_line(error)
        raise TokenizerError(f"chat template {version}: {fault}") from error
    return tokens
