"""Events of a streamed response, numbered, in their order.

response.created, response.in_progress; for each item response.output_item.added, its parts and deltas,
response.output_item.done; at last response.completed, response.incomplete or response.failed.
Source: https://platform.openai.com/docs/api-reference/responses-streaming.
"""

from collections.abc import Iterable, Sequence

from mistral_portable.answers import Content, Delta, Reasoning, ToolCall
from mistral_portable.api import JSON, Part, WholeCalls
from mistral_portable.engine import Generation
from mistral_portable.openai.response_answers import (
    Response,
    call_item,
    message_item,
    new_id,
    reasoning_item,
    reasoning_part,
    text_part,
)

__all__ = ["ResponseEvents"]


class ResponseEvents:
    """Writes the events of one answer; each is named by its "type"."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._calls = WholeCalls()
        self._number = 0
        self._items: list[JSON] = []  # that are done
        self._open: _Open | None = None

    def begin(self) -> list[JSON]:
        """The events before the first delta."""
        return [self._event(f"response.{kind}", response=self._response.begun()) for kind in ("created", "in_progress")]

    def push(self, deltas: Iterable[Delta]) -> list[JSON]:
        """The events of further deltas."""
        return self._write(self._calls.push(deltas))

    def end(self, generation: Generation) -> list[JSON]:
        """The events at the end of the answer."""
        # An answer without any text is a message, too.
        events = self._enter(Content) if not self._items and self._open is None else []
        cut = generation.finish_reason == "length"
        events += self._close("incomplete" if cut else "completed")
        kind = "response.incomplete" if cut else "response.completed"
        return [*events, self._event(kind, response=self._response.ended(generation, self._items))]

    def fail(self, message: str) -> list[JSON]:
        """The event at the end of an answer that an error ended."""
        return [self._event("response.failed", response=self._response.failed(message))]

    def _write(self, parts: Iterable[Part]) -> list[JSON]:
        events: list[JSON] = []
        for part in parts:
            if isinstance(part, ToolCall):
                events += [*self._close(), *self._call(part)]
                continue
            events += self._enter(type(part))
            assert self._open is not None
            self._open.pieces.append(part.text)
            events.append(
                self._event(f"{self._open.event}.delta", **self._open.place, delta=part.text, **self._open.scores)
            )
        return events

    def _enter(self, kind: type[Content | Reasoning]) -> list[JSON]:
        """The events before a delta of this kind: none if an item of it is open."""
        if self._open is not None and self._open.kind is kind:
            return []
        events = self._close()
        self._open = opened = _Open(kind, len(self._items))
        events.append(self._added(opened.item("in_progress")))
        events.append(self._event("response.content_part.added", **opened.place, part=opened.part("")))
        return events

    def _close(self, status: str = "completed") -> list[JSON]:
        """The events at the end of the item that is open. status: of a message."""
        opened, self._open = self._open, None
        if opened is None:
            return []
        text = "".join(opened.pieces)
        return [
            self._event(f"{opened.event}.done", **opened.place, text=text, **opened.scores),
            self._event("response.content_part.done", **opened.place, part=opened.part(text)),
            self._done(opened.item(status, [opened.part(text)])),
        ]

    def _call(self, call: ToolCall) -> list[JSON]:
        id = new_id("fc")
        place: JSON = {"item_id": id, "output_index": len(self._items)}
        arguments = "response.function_call_arguments"
        return [
            self._added(call_item(id, call.id, call.name, "", "in_progress")),
            self._event(f"{arguments}.delta", **place, delta=call.arguments),
            self._event(f"{arguments}.done", **place, name=call.name, arguments=call.arguments),
            self._done(call_item(id, call.id, call.name, call.arguments)),
        ]

    def _added(self, item: JSON) -> JSON:
        return self._event("response.output_item.added", output_index=len(self._items), item=item)

    def _done(self, item: JSON) -> JSON:
        event = self._event("response.output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)
        return event

    def _event(self, kind: str, **fields: object) -> JSON:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}


class _Open:
    """The item that is being written: a message or reasoning, of one part.

    event: how the names of its events begin. place: the fields that say which part they are about. scores: further
    fields that OpenAI's clients want.
    """

    def __init__(self, kind: type[Content | Reasoning], index: int) -> None:
        """index: of the item."""
        self.kind = kind
        self.pieces: list[str] = []
        self.is_text = kind is Content
        self.id = new_id("msg" if self.is_text else "rs")
        self.event = "response.output_text" if self.is_text else "response.reasoning_text"
        self.place: JSON = {"item_id": self.id, "output_index": index, "content_index": 0}
        self.scores: JSON = {"logprobs": []} if self.is_text else {}

    def part(self, text: str) -> JSON:
        """Its part."""
        return text_part(text) if self.is_text else reasoning_part(text)

    def item(self, status: str, content: Sequence[JSON] = ()) -> JSON:
        """The item."""
        return message_item(self.id, content, status) if self.is_text else reasoning_item(self.id, content)
