"""Items of a request for /v1/responses: messages, calls, their results and reasoning, as OpenAI's chat messages.

Source: https://platform.openai.com/docs/api-reference/responses/create (`input`). Images, files, references to stored
items and calls of tools that OpenAI's servers run are refused.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mistral_portable.api import JSON, Body, Many

__all__ = ["Item", "chat_messages"]


class TextPart(Body):
    """A piece of text."""

    type: Literal["input_text", "output_text", "summary_text", "reasoning_text", "text"]
    text: str


class RefusalPart(Body):
    """A refusal: an assistant said it instead of an answer."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """The refusal."""
        return self.refusal


def _as_parts(content: object) -> object:
    """A content that is a text is short for one part."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Part = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
Parts = Annotated[list[Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])]


class MessageItem(Body):
    """A turn."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts


class CallItem(Body):
    """A call of an earlier answer. arguments: JSON."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class ResultItem(Body):
    """The result of a tool."""

    type: Literal["function_call_output"]
    call_id: str
    output: Parts


class ReasoningItem(Body):
    """Reasoning of an earlier answer. Only its text is read: what is encrypted is OpenAI's."""

    type: Literal["reasoning"]
    content: Many[TextPart] | None = None


def _as_item(item: object) -> object:
    """A message may leave out its type."""
    return {**item, "type": "message"} if isinstance(item, dict) and "role" in item and "type" not in item else item


Item = Annotated[
    Annotated[MessageItem | CallItem | ResultItem | ReasoningItem, Field(discriminator="type")],
    BeforeValidator(_as_item),
]


def chat_messages(items: Sequence[Any]) -> list[JSON]:
    """OpenAI's chat messages of items: reasoning, text and calls of one answer become one message."""
    made: list[JSON] = []
    answer: JSON | None = None  # the assistant's message that further items may be part of
    for item in items:
        if isinstance(item, ResultItem):
            made.append({"role": "tool", "tool_call_id": item.call_id, "content": _joined(item.output)})
            answer = None
            continue
        if isinstance(item, MessageItem) and item.role != "assistant":
            made.append({"role": _ROLES.get(item.role, item.role), "content": _joined(item.content)})
            answer = None
            continue
        if answer is None or (_said(answer) and not isinstance(item, CallItem)):
            answer = {"role": "assistant", "content": None}
            made.append(answer)
        _add(answer, item)
    # Reasoning that OpenAI has encrypted leaves nothing to be read.
    return [one for one in made if one["role"] != "assistant" or _said(one) or "reasoning_content" in one]


_ROLES = {"developer": "system"}


def _said(answer: JSON) -> bool:
    return answer["content"] is not None or "tool_calls" in answer


def _add(answer: JSON, item: MessageItem | CallItem | ReasoningItem) -> None:
    """Add an item to the message of its answer."""
    if isinstance(item, MessageItem):
        answer["content"] = _joined(item.content)
    elif isinstance(item, CallItem):
        function = {"name": item.name, "arguments": item.arguments}
        answer.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
    elif item.content:
        answer["reasoning_content"] = answer.get("reasoning_content", "") + "".join(part.text for part in item.content)


def _joined(parts: Sequence[TextPart | RefusalPart]) -> str:
    return "".join(part.text for part in parts)
