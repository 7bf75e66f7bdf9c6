"""Requests of OpenAI's API, checked: bodies of /v1/chat/completions and /v1/completions.

Unknown fields are ignored, as OpenAI's clients send more of them with every version; wrong types and values are not.
Source: https://platform.openai.com/docs/api-reference. `top_k`, `min_p`, `typical_p`, `repetition_penalty` (also
`repeat_penalty`) and `ignore_eos` are understood besides, as by llama-server and vLLM.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, cast

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from mistral_portable.engine.model import Prompt
from mistral_portable.errors import InputError
from mistral_portable.sampling import SamplingParams

__all__ = ["URLS", "ChatRequest", "TextRequest", "parse_request"]

_MOST_ANSWERS = 128
_MOST_LOGPROBS = 20


class Chat(Protocol):
    """`Tokenizer.chat`: makes token ids of messages."""

    def __call__(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int]: ...


class _Request(BaseModel):
    """The fields that both kinds have."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    n: int = Field(1, ge=1, le=_MOST_ANSWERS)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = Field(1.0, validation_alias=AliasChoices("repetition_penalty", "repeat_penalty"))
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    stream: bool | None = None
    user: str | None = None

    def _sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        try:
            biases = {int(token): value for token, value in (self.logit_bias or {}).items()}
        except ValueError as error:
            raise InputError(f"logit_bias: a key is no token id: {error}") from error
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=biases,
            seed=self.seed,
            stop=tuple([self.stop] if isinstance(self.stop, str) else self.stop or ()),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
        )


class ChatRequest(_Request):
    """The body of a request for /v1/chat/completions."""

    kind: ClassVar[str] = "chat"

    messages: list[dict[str, Any]] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=_MOST_LOGPROBS)

    def prompts(self, chat: Chat) -> list[Prompt]:
        """The one prompt, as token ids. chat: makes them of messages and tools, which tool_choice "none" leaves out.

        Raises InputError for a tool_choice that is not supported.
        """
        if self.tool_choice not in (None, "auto", "none"):
            raise InputError(f"tool_choice: {self.tool_choice!r:.80} is not supported yet; choose 'none' or 'auto'")
        return [chat(self.messages, tools=None if self.tool_choice == "none" else self.tools)]

    def sampling(self) -> SamplingParams:
        """Raises InputError, naming the field, for a value out of range."""
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        if self.top_logprobs is not None and not self.logprobs:
            raise InputError("top_logprobs: needs logprobs to be true")
        return self._sampling(most, (self.top_logprobs or 0) if self.logprobs else None)


class TextRequest(_Request):
    """The body of a request for /v1/completions."""

    kind: ClassVar[str] = "text"

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=_MOST_LOGPROBS)
    echo: bool | None = None
    suffix: str | None = None

    def prompts(self, chat: Chat) -> list[Prompt]:
        """The prompts, each a text or token ids."""
        if not self.prompt:
            raise InputError("prompt: it is empty")
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [cast(Prompt, self.prompt)] if one else list(cast(Sequence[Prompt], self.prompt))

    def sampling(self) -> SamplingParams:
        """Raises InputError, naming the field, for a value out of range, or one that is not supported."""
        if self.echo:
            raise InputError("echo: the prompt cannot be returned; leave it out")
        if self.suffix:
            raise InputError("suffix: text before a suffix cannot be completed here; leave it out")
        return self._sampling(self.max_tokens, self.logprobs)


URLS: Mapping[str, type[ChatRequest] | type[TextRequest]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": TextRequest,
}


def parse_request(url: str, body: object) -> ChatRequest | TextRequest:
    """Check a body for one of URLS. Raises InputError that names each wrong field and value."""
    if url not in URLS:
        raise InputError(f"url {url!r}: choose one of {', '.join(URLS)}")
    try:
        return URLS[url].model_validate(body)
    except ValidationError as error:
        found = [f"{_path(one['loc'])}: {one['msg']}, got {one['input']!r:.60}" for one in error.errors()]
        raise InputError("; ".join(found)) from error


def _path(location: Sequence[int | str]) -> str:
    """A place in a body: messages.0.role."""
    return ".".join(str(part) for part in location) or "body"
