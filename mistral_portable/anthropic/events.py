"""Events of a streamed message, in their order.

message_start, ping, then for each block content_block_start, content_block_delta (any number), content_block_stop, at
last message_delta and message_stop. Source: https://docs.claude.com/en/docs/build-with-claude/streaming.
"""

from collections.abc import Iterable

from mistral_portable.answers import Content, Delta, Reasoning, ToolCall
from mistral_portable.anthropic.answers import (
    empty_message,
    stop_reason,
    text_block,
    thinking_block,
    tool_block,
    usage,
)
from mistral_portable.api import JSON, Part, WholeCalls
from mistral_portable.engine import Generation

__all__ = ["PING", "MessageEvents"]

PING: JSON = {"type": "ping"}
"""Says that the stream lives."""


class MessageEvents:
    """Writes the events of one answer; each is named by its "type"."""

    def __init__(self, model: str, prompt_tokens: int) -> None:
        """prompt_tokens: their number; how many of them were in the cache is said at the end."""
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._calls = WholeCalls()
        self._index = -1  # of the last block
        self._open: type[Part] | None = None  # what it holds while it is open

    def begin(self) -> list[JSON]:
        """The events before the first delta."""
        counts = {"input_tokens": self._prompt_tokens, "output_tokens": 0}
        return [{"type": "message_start", "message": {**empty_message(self._model), "usage": counts}}, PING]

    def push(self, deltas: Iterable[Delta]) -> list[JSON]:
        """The events of further deltas."""
        return self._write(self._calls.push(deltas))

    def end(self, generation: Generation) -> list[JSON]:
        """The events at the end of the answer."""
        reason, sequence = stop_reason(generation)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return [
            *self._close(),
            {"type": "message_delta", "delta": delta, "usage": usage(generation)},
            {"type": "message_stop"},
        ]

    def _write(self, parts: Iterable[Part]) -> list[JSON]:
        events: list[JSON] = []
        for part in parts:
            match part:
                case Content(text):
                    events += self._enter(Content, text_block(""))
                    events.append(self._delta("text_delta", "text", text))
                case Reasoning(text):
                    events += self._enter(Reasoning, thinking_block(""))
                    events.append(self._delta("thinking_delta", "thinking", text))
                case ToolCall(id, name, arguments):
                    events += [*self._close(), *self._enter(ToolCall, tool_block(id, name, {}))]
                    events.append(self._delta("input_json_delta", "partial_json", arguments))
        return events

    def _enter(self, kind: type[Part], block: JSON) -> list[JSON]:
        """The events before a delta of this kind: none if a block of it is open."""
        if self._open is kind:
            return []
        events = self._close()
        self._open = kind
        self._index += 1
        return [*events, {"type": "content_block_start", "index": self._index, "content_block": block}]

    def _delta(self, kind: str, field: str, text: str) -> JSON:
        return {"type": "content_block_delta", "index": self._index, "delta": {"type": kind, field: text}}

    def _close(self) -> list[JSON]:
        if self._open is None:
            return []
        self._open = None
        return [{"type": "content_block_stop", "index": self._index}]
