"""Messages of OpenAI's API that an assistant writes: whole, and as the deltas of a stream.

Reasoning has no field there; llama-server and DeepSeek call it `reasoning_content`, vLLM `reasoning`: clients read
either, so both are written. Source: https://platform.openai.com/docs/api-reference/chat.
"""

from typing import Any

from mistral_portable.answers import CallArguments, CallBegin, CallEnd, CallFailed, Content, Delta, Reasoning, ToolCall
from mistral_portable.engine import Generation

__all__ = ["assistant_message", "call_fields", "delta_fields", "finish_reason"]

JSON = dict[str, Any]


def assistant_message(generation: Generation) -> JSON:
    """The message of an answer. Its content is null if there are tool calls and no text beside them."""
    message: JSON = {"role": "assistant", "content": generation.text, "refusal": None}
    if generation.reasoning:
        message |= _reasoning(generation.reasoning)
    if generation.tool_calls:
        message["content"] = generation.text or None
        message["tool_calls"] = [call_fields(call) for call in generation.tool_calls]
    return message


def call_fields(call: ToolCall) -> JSON:
    """A whole call."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def delta_fields(delta: Delta) -> JSON | None:
    """The `delta` of a chunk that says the same; None for the end or the failure of a call, which have no field."""
    match delta:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return _reasoning(text)
        case CallBegin(index, id, name):
            call = {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
            return {"tool_calls": [call]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        case CallEnd() | CallFailed():
            return None


def finish_reason(generation: Generation) -> str:
    """The reason why an answer ended: "tool_calls" where calls are what it came to, else the generation's."""
    called = generation.tool_calls and generation.finish_reason == "stop"
    return "tool_calls" if called else generation.finish_reason


def _reasoning(text: str) -> JSON:
    return {"reasoning": text, "reasoning_content": text}
