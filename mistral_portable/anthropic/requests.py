"""Requests of Anthropic's API, checked: bodies of /v1/messages and /v1/messages/count_tokens.

Source: https://docs.claude.com/en/api/messages. Understood: text, tools, their calls and results, thinking, and a JSON
schema in `output_config`. Images, documents and tools that Anthropic's servers would run are refused. Ignored, as they
do not change what is answered here: `cache_control`, `thinking`, `service_tier`, `output_config.effort`.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from mistral_portable.answers import ToolChoice as OpenAIChoice
from mistral_portable.answers import named
from mistral_portable.api import JSON, UNSTATED, Body, Conversation, Many, Stated, Stops, sampling_params

__all__ = ["CountRequest", "MessagesRequest"]

_BILLING = "x-anthropic-"  # Claude Code's first system block, whose number changes with every request


def _as_blocks(content: object) -> object:
    """A content that is a text is short for one text block."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class TextBlock(Body):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Body):
    """Reasoning of an earlier answer. Its signature is Anthropic's own and not looked at."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(Body):
    """Reasoning that nobody but Anthropic can read: dropped."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(Body):
    """A call of an earlier answer."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: JSON


_TextBlocks = Annotated[Many[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | Many[TextBlock])]


class ToolResultBlock(Body):
    """The result of a tool."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: _TextBlocks = Field(default_factory=list)
    is_error: bool = False

    def message(self) -> JSON:
        """OpenAI's message of the role `tool`. An error is said in words, as there is no field for it."""
        text = _joined(self.content)
        return {
            "role": "tool",
            "tool_call_id": self.tool_use_id,
            "content": f"Error: {text}" if self.is_error else text,
        }


Block = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")
]


class Message(Body):
    """A turn."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[Many[Block], BeforeValidator(_as_blocks, json_schema_input_type=str | Many[Block])]

    def messages(self) -> list[JSON]:
        """OpenAI's messages: results of tools first, as they follow the calls, then all else as one."""
        results = [block.message() for block in self.content if isinstance(block, ToolResultBlock)]
        calls = [block for block in self.content if isinstance(block, ToolUseBlock)]
        reasoning = "".join(block.thinking for block in self.content if isinstance(block, ThinkingBlock))
        texts = [block for block in self.content if isinstance(block, TextBlock)]
        if results and not (texts or calls or reasoning):
            return results
        message: JSON = {"role": self.role, "content": _joined(texts)}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [_call(block) for block in calls]
        return [*results, message]


class Tool(Body):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1)
    description: str = ""
    input_schema: JSON

    def function(self) -> JSON:
        """OpenAI's form."""
        function = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return {"type": "function", "function": function}


class AutoChoice(Body):
    """Call a tool or not."""

    type: Literal["auto"]
    disable_parallel_tool_use: bool = False


class AnyChoice(Body):
    """Call a tool, whichever."""

    type: Literal["any"]
    disable_parallel_tool_use: bool = False


class NamedChoice(Body):
    """Call this tool."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool = False


class NoChoice(Body):
    """Call no tool."""

    type: Literal["none"]


ToolChoice = Annotated[AutoChoice | AnyChoice | NamedChoice | NoChoice, Field(discriminator="type")]


class JSONFormat(Body):
    """A JSON schema that the text follows."""

    type: Literal["json_schema"]
    schema_: JSON = Field(alias="schema")


class OutputConfig(Body):
    """format: None for plain text."""

    format: JSONFormat | None = None


class Metadata(Body):
    """user_id: who asks."""

    user_id: str | None = Field(None, max_length=1024)


class CountRequest(Body):
    """The body of a request for /v1/messages/count_tokens."""

    model: str | None = None
    messages: Many[Message] = Field(min_length=1)
    system: _TextBlocks | None = None
    tools: Many[Tool] | None = None
    tool_choice: ToolChoice | None = None

    def chat(self) -> list[JSON]:
        """The conversation in OpenAI's format, without system blocks that begin with "x-anthropic-": what Claude Code
        writes there changes with every request, so that no prompt would begin like the one before."""
        system = _joined([block for block in self.system or () if not block.text.startswith(_BILLING)])
        first = [{"role": "system", "content": system}] if system else []
        return [*first, *(made for message in self.messages for made in message.messages())]

    def functions(self) -> list[JSON]:
        """The tools in OpenAI's format; none where they must not be called."""
        return [] if isinstance(self.tool_choice, NoChoice) else [tool.function() for tool in self.tools or ()]


class MessagesRequest(CountRequest):
    """The body of a request for /v1/messages."""

    max_tokens: int = Field(ge=1)
    stop_sequences: Stops | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool = False
    metadata: Metadata | None = None
    output_config: OutputConfig | None = None

    def to_conversation(self, stated: Stated = UNSTATED) -> Conversation:
        """The same for every API. Raises InputError, naming the field, for a value out of range."""
        choice = self.tool_choice
        given = self.given("max_tokens", "temperature", "top_p", "top_k")
        params = sampling_params({"temperature": 1.0}, stated, {**given, "stop": tuple(self.stop_sequences or ())})
        output = self.output_config
        return Conversation(
            messages=self.chat(),
            params=params,
            tools=self.functions(),
            tool_choice=_tool_choice(choice),
            parallel=isinstance(choice, NoChoice | None) or not choice.disable_parallel_tool_use,
            schema=output.format.schema_ if output is not None and output.format is not None else None,
            model=self.model,
            user=(self.metadata.user_id if self.metadata is not None else None) or "",
            stream=self.stream,
        )


def _tool_choice(choice: ToolChoice | None) -> OpenAIChoice:
    """OpenAI's form."""
    match choice:
        case None:
            return "auto"
        case NamedChoice(name=name):
            return named(name)
        case _:
            return choice.type


def _joined(blocks: Sequence[TextBlock]) -> str:
    return "\n\n".join(block.text for block in blocks)


def _call(block: ToolUseBlock) -> JSON:
    arguments = json.dumps(block.input, ensure_ascii=False)
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}
