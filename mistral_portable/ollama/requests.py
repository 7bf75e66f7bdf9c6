"""Requests of Ollama's API, checked: bodies of /api/chat, /api/generate, /api/embed, /api/show.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md. Images, templates and the deprecated `context` are
refused.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mistral_portable.api import JSON, UNSTATED, Body, Conversation, Many, Stated
from mistral_portable.errors import InputError
from mistral_portable.ollama.options import AnswerRequest

__all__ = ["ChatRequest", "EmbedRequest", "EmbeddingsRequest", "GenerateRequest", "ShowRequest"]

MOST_INPUTS = 2048


class Function(Body):
    """A call: name and arguments as an object."""

    name: str
    arguments: JSON


class ToolCall(Body):
    """A call of an earlier answer."""

    id: str | None = None
    function: Function


class Message(Body):
    """A turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Many[Any] | None = Field(None, max_length=0)
    tool_calls: Many[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ChatRequest(AnswerRequest):
    """The body of a request for /api/chat. Without messages it asks for nothing but that the model is loaded."""

    messages: Many[Message] = Field(default_factory=list)
    tools: Many[JSON] | None = None

    def to_conversation(self, stated: Stated = UNSTATED) -> Conversation:
        """The same for every API. Raises InputError, naming the field, for a value out of range."""
        return Conversation(
            messages=_openai(self.messages),
            params=self.sampling(stated),
            tools=self.tools or [],
            schema=self.schema_,
            model=self.model,
            stream=self.stream,
        )


class GenerateRequest(AnswerRequest):
    """The body of a request for /api/generate. Without a prompt it asks for nothing but that the model is loaded.

    raw: the prompt is a text to be continued; else it is a message to be answered. suffix: the text behind the gap.
    """

    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    raw: bool = False
    template: str | None = Field(None, max_length=0)
    context: Many[int] | None = Field(None, max_length=0)
    images: Many[Any] | None = Field(None, max_length=0)

    @model_validator(mode="after")
    def _fits(self) -> "GenerateRequest":
        if self.system and self.is_text:
            raise ValueError("system: a text that is continued or filled has no system message; leave it out")
        return self

    @property
    def is_text(self) -> bool:
        """Whether the prompt is a text to be continued or filled, and no message."""
        return self.raw or bool(self.suffix)

    def to_conversation(self, stated: Stated = UNSTATED) -> Conversation:
        """The prompt as a chat of one message. Raises InputError, naming the field, for a value out of range."""
        if self.is_text:
            raise InputError("prompt: it is a text, not a chat: raw and suffix are given")
        system = [{"role": "system", "content": self.system}] if self.system else []
        return Conversation(
            messages=[*system, {"role": "user", "content": self.prompt}],
            params=self.sampling(stated),
            schema=self.schema_,
            model=self.model,
            stream=self.stream,
        )


class EmbedRequest(Body):
    """The body of a request for /api/embed. A text that is too long is an error: nothing is cut (`truncate`)."""

    model: str = Field(min_length=1)
    input: str | Annotated[Many[str], Field(min_length=1, max_length=MOST_INPUTS)]
    dimensions: int | None = None

    @property
    def texts(self) -> list[str]:
        """One or more."""
        return [self.input] if isinstance(self.input, str) else self.input


class EmbeddingsRequest(Body):
    """The body of a request for /api/embeddings, the older form for one text."""

    model: str = Field(min_length=1)
    prompt: str


class ShowRequest(Body):
    """The body of a request for /api/show."""

    model: str = Field(min_length=1)


def _openai(messages: Sequence[Message]) -> list[JSON]:
    """OpenAI's messages. Calls have no ids here, so each gets the number of its turn and place, and a result is that of
    the first call with its tool's name that has none yet, or else of the first one."""
    made: list[JSON] = []
    waiting: list[tuple[str, str]] = []  # ids and names of calls without a result
    for turn, message in enumerate(messages):
        one: JSON = {"role": message.role, "content": message.content or ""}
        if message.thinking:
            one["reasoning_content"] = message.thinking
        if message.tool_calls:
            calls = [
                (call.id or f"call{turn}at{place}", call.function) for place, call in enumerate(message.tool_calls)
            ]
            one["content"] = message.content or None
            one["tool_calls"] = [_call(identifier, function) for identifier, function in calls]
            waiting = [(identifier, function.name) for identifier, function in calls]
        if message.role == "tool":
            one["tool_call_id"] = message.tool_call_id or _take(waiting, message.tool_name, turn)
            if message.tool_name:
                one["name"] = message.tool_name
        made.append(one)
    return made


def _take(waiting: list[tuple[str, str]], name: str | None, turn: int) -> str:
    """The id of the call that a result belongs to, which then waits no longer."""
    if not waiting:
        raise InputError(f"messages.{turn}: the result of a tool that no message has called; put the call before it")
    named = (index for index, (_, called) in enumerate(waiting) if called == name)
    return waiting.pop(next(named, 0))[0]


def _call(identifier: str, function: Function) -> JSON:
    arguments = json.dumps(function.arguments, ensure_ascii=False)
    return {"id": identifier, "type": "function", "function": {"name": function.name, "arguments": arguments}}
