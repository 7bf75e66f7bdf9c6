"""Conversation: a request for an answer to a chat, the same whichever API it came by."""

from dataclasses import dataclass, field
from typing import Literal

from mistral_portable.api.body import JSON
from mistral_portable.errors import InputError
from mistral_portable.sampling import SamplingParams

__all__ = ["Conversation", "any_object"]


def any_object() -> JSON:
    """The JSON schema of any object: what `json_object` and Ollama's "json" ask for."""
    return {"type": "object"}


@dataclass(frozen=True)
class Conversation:
    """messages, tools: in OpenAI's format, as `Tokenizer.chat` takes them. params: how to sample.

    tool_choice: whether the answer may or must call a tool. tool_name: the one that it must call. parallel: whether it
    may call several. schema: a JSON schema that the text follows. model: as the client wrote it. user: who asks; users
    share the steps alike. stream: whether the answer comes piece by piece.

    Raises InputError if a tool must be called that is not there.
    """

    messages: list[JSON]
    params: SamplingParams
    tools: list[JSON] = field(default_factory=list)
    tool_choice: Literal["auto", "none", "required"] = "auto"
    tool_name: str | None = None
    parallel: bool = True
    schema: JSON | None = None
    model: str | None = None
    user: str = ""
    stream: bool = False

    def __post_init__(self) -> None:
        if self.tool_choice != "required":
            return
        names = [tool.get("function", {}).get("name") for tool in self.tools]
        if not names:
            raise InputError("tool_choice: a tool must be called, and there are none: give tools, or leave it out")
        if self.tool_name is not None and self.tool_name not in names:
            raise InputError(
                f"tool_choice: {self.tool_name!r:.60} is none of the tools: {', '.join(map(str, names)):.200}"
            )
