"""Conversation: a request for an answer to a chat, the same whichever API it came by."""

from dataclasses import dataclass, field

from mistral_portable.answers import ToolChoice, demanded
from mistral_portable.api.body import JSON
from mistral_portable.sampling import SamplingParams

__all__ = ["Conversation", "any_object"]


def any_object() -> JSON:
    """The JSON schema of any object: what `json_object` and Ollama's "json" ask for."""
    return {"type": "object"}


@dataclass(frozen=True)
class Conversation:
    """messages, tools, tool_choice: in OpenAI's format, as `Model.answer` takes them. params: how to sample.

    parallel: whether the answer may call several tools. schema: a JSON schema that the text follows. model: as the
    client wrote it. user: who asks; users share the steps alike. stream: whether the answer comes piece by piece.

    Raises InputError if a tool must be called that is not there.
    """

    messages: list[JSON]
    params: SamplingParams
    tools: list[JSON] = field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel: bool = True
    schema: JSON | None = None
    model: str | None = None
    user: str = ""
    stream: bool = False

    def __post_init__(self) -> None:
        demanded(self.tools, self.tool_choice)
