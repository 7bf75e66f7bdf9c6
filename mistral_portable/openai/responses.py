"""Requests of OpenAI's newer API, checked: bodies of /v1/responses.

Source: https://platform.openai.com/docs/api-reference/responses/create. The server keeps no answers: what would need
that (`previous_response_id`, `conversation`, `store`, `background`, `prompt`) is refused, and so are tools that
OpenAI's servers run and prompts that are cut (`truncation`). `include`, `reasoning`, `service_tier` and
`text.verbosity` are ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mistral_portable.answers import named
from mistral_portable.api import JSON, UNSTATED, Body, Conversation, Many, Stated, any_object, sampling_params
from mistral_portable.errors import InputError
from mistral_portable.openai.response_items import Item, chat_messages
from mistral_portable.sampling import SamplingParams

__all__ = ["ResponseRequest"]


class FunctionTool(Body):
    """A tool that the client runs."""

    type: Literal["function"]
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: JSON | None = None

    def function(self) -> JSON:
        """The form of /v1/chat/completions."""
        function = {"name": self.name, "description": self.description or "", "parameters": self.parameters}
        return {"type": "function", "function": function}


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    name: str


class TextFormat(Body):
    """Plain text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Body):
    """A JSON schema that the text follows."""

    type: Literal["json_schema"]
    name: str = "answer"
    schema_: JSON = Field(alias="schema")


class TextConfig(Body):
    """format: of the text; None for plain text."""

    format: Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None


def _as_items(value: object) -> object:
    """An input that is a text is short for one message of the user."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class ResponseRequest(Body):
    """The body of a request for /v1/responses."""

    model: str | None = None
    input: Annotated[
        Many[Item], Field(min_length=1), BeforeValidator(_as_items, json_schema_input_type=str | Many[Item])
    ]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    tools: Many[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    stream: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: JSON | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | JSON | None = None
    prompt: JSON | None = None
    truncation: str | None = None
    top_logprobs: int | None = None

    def to_conversation(self, stated: Stated = UNSTATED) -> Conversation:
        """The same for every API. Raises InputError, naming the field, for a value out of range or what is refused."""
        self._refuse()
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        choice = self.tool_choice
        return Conversation(
            messages=[*first, *chat_messages(self.input)],
            params=self._sampling(stated),
            tools=[tool.function() for tool in self.tools or ()],
            tool_choice=named(choice.name) if isinstance(choice, NamedTool) else choice or "auto",
            parallel=self.parallel_tool_calls is not False,
            schema=self._schema(),
            model=self.model,
            user=self.safety_identifier or self.user or "",
            stream=bool(self.stream),
        )

    def _sampling(self, stated: Stated) -> SamplingParams:
        given = self.given("temperature", "top_p")
        if self.max_output_tokens is not None:
            given["max_tokens"] = self.max_output_tokens
        return sampling_params({"max_tokens": None, "temperature": 1.0}, stated, given)

    def settings(self, params: SamplingParams) -> JSON:
        """The fields of the request that an answer repeats. params: how it is sampled."""
        choice: Any = self.tool_choice or "auto"
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "temperature": params.temperature,
            "text": {"format": self._format()},
            "tool_choice": choice.model_dump() if isinstance(choice, NamedTool) else choice,
            "tools": [{**tool.model_dump(), "strict": False} for tool in self.tools or ()],
            "top_p": params.top_p,
            **({} if self.user is None else {"user": self.user}),
        }

    def _format(self) -> JSON:
        chosen = self.text.format if self.text is not None else None
        if isinstance(chosen, SchemaFormat):
            return {"type": "json_schema", "name": chosen.name, "schema": chosen.schema_, "strict": True}
        return {"type": "text" if chosen is None else chosen.type}

    def _schema(self) -> JSON | None:
        chosen = self.text.format if self.text is not None else None
        if isinstance(chosen, SchemaFormat):
            return chosen.schema_
        return any_object() if isinstance(chosen, ObjectFormat) else None

    def _refuse(self) -> None:
        kept = "the server keeps no answers; send all items in input, and leave it out"
        for name in ("previous_response_id", "conversation", "prompt"):
            if getattr(self, name) is not None:
                raise InputError(f"{name}: {kept}")
        for name in ("store", "background"):
            if getattr(self, name):
                raise InputError(f"{name}: {kept}, or set it to false")
        if self.truncation not in (None, "disabled"):
            raise InputError(f"truncation={self.truncation!r:.40}: a prompt is never cut; leave it out")
        if self.top_logprobs:
            raise InputError(f"top_logprobs={self.top_logprobs}: only /v1/chat/completions has log-probabilities here")
