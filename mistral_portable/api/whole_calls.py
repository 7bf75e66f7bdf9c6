"""Holds tool calls back until they are whole, for the APIs whose clients cannot take one back.

OpenAI's chat streams show the pieces of a call as they are made. Anthropic's buffer and validate them by default
(https://docs.claude.com/en/docs/agents-and-tools/tool-use/fine-grained-tool-streaming), Ollama's have whole calls only.
"""

from collections.abc import Iterable

from mistral_portable.answers import CallArguments, CallBegin, CallEnd, CallFailed, Content, Delta, Reasoning, ToolCall

__all__ = ["Part", "WholeCalls"]

Part = Content | Reasoning | ToolCall
"""A piece of text or of reasoning, or a call."""


class WholeCalls:
    """Turns deltas into parts: what begins as a call and fails is text alone."""

    def __init__(self) -> None:
        self._held: dict[int, ToolCall] = {}

    def push(self, deltas: Iterable[Delta]) -> list[Part]:
        """Take the next deltas; return what is certain now."""
        parts: list[Part] = []
        for delta in deltas:
            match delta:
                case CallBegin(index, id, name):
                    self._held[index] = ToolCall(id, name, "")
                case CallArguments(index, text):
                    call = self._held[index]
                    self._held[index] = ToolCall(call.id, call.name, call.arguments + text)
                case CallEnd(index):
                    parts.append(self._held.pop(index))
                case CallFailed(index, _):
                    if index is not None:
                        del self._held[index]
                case Content() | Reasoning():
                    parts.append(delta)
        return parts
