"""Requests of OpenAI's API, checked: bodies of /v1/chat/completions and /v1/completions.

Unknown fields are ignored, as OpenAI's clients send more of them with every version; wrong types and values are not.
A field that is null has its default. Source: https://platform.openai.com/docs/api-reference. `top_k`, `min_p`,
`typical_p`, `repetition_penalty` (also `repeat_penalty`), `ignore_eos`, `cache_salt`, `grammar`, `regex` and
`speculative.n_max` are understood besides, as by llama-server and vLLM, and so are llama-server's fields of the other
rules, and vLLM's `min_tokens`; `random_seed` is Mistral's name of `seed`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol, cast

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from mistral_portable.answers import offered
from mistral_portable.api import (
    JSON,
    UNSTATED,
    Body,
    Many,
    Stated,
    Stop,
    Stops,
    any_object,
    check_body,
    sampling_params,
)
from mistral_portable.engine.prompts import Prompt
from mistral_portable.errors import InputError
from mistral_portable.sampling import RULES, SamplingParams

__all__ = ["URLS", "ChatRequest", "Effort", "Many", "Request", "TextRequest", "parse_request"]


_MOST_ANSWERS = 128
_MOST_LOGPROBS = 20
_MOST_BIASES = 2**18

_MORE_RULES = (
    "repeat_last_n",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "dynatemp_range",
    "dynatemp_exponent",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "samplers",
    "min_tokens",
)
"""Fields that have the same name and meaning in SamplingParams, and its defaults."""

Effort = Annotated[str, Field(max_length=64)]
"""How much the model is to reason, in a word that its chat template knows."""


class Chat(Protocol):
    """`Tokenizer.chat`: makes token ids of messages."""

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        reasoning_effort: str | None,
    ) -> list[int]: ...


class StreamOptions(BaseModel):
    """How a stream is written. include_usage: whether a chunk with the numbers of tokens comes last."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None


class NamedSchema(BaseModel):
    """A JSON schema. It is kept to the letter, whether `strict` or not."""

    model_config = ConfigDict(strict=True, extra="ignore")

    schema_: JSON = Field(alias="schema")


class ResponseFormat(BaseModel):
    """The form that an answer must have."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    def schema_of_answers(self) -> JSON | None:
        """The schema that answers follow; None for plain text. Raises InputError if it is missing."""
        if self.type != "json_schema":
            return any_object() if self.type == "json_object" else None
        if self.json_schema is None:
            raise InputError("response_format.json_schema: it is missing; give {'schema': {...}}")
        return self.json_schema.schema_


class PredictedPart(BaseModel):
    """A part of a prediction."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text"] = "text"
    text: str


class Prediction(BaseModel):
    """A text much of which the answer is expected to repeat, such as a file that it changes: it comes sooner then."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["content"] = "content"
    content: str | Many[PredictedPart]

    @property
    def text(self) -> str:
        """The text of all parts."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Request(Body):
    """The fields that both kinds have."""

    model: str | None = None
    n: int = Field(1, ge=1, le=_MOST_ANSWERS)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = Field(1.0, validation_alias=AliasChoices("repetition_penalty", "repeat_penalty"))
    repeat_last_n: int | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: Stops | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    samplers: Annotated[Many[str], Field(max_length=16)] | None = None
    min_tokens: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=_MOST_BIASES)
    seed: int | None = Field(None, validation_alias=AliasChoices("seed", "random_seed"))
    stop: Stop | Stops | None = None
    ignore_eos: bool = False
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    grammar: str | None = None
    regex: str | None = None
    user: str | None = None
    cache_salt: str | None = None
    prediction: Prediction | None = None
    most_drafted: int | None = Field(None, ge=0, alias="speculative.n_max")

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def prompts(self, chat: Chat) -> list[Prompt]:
        """The prompts, each a text or token ids. chat: makes ids of messages and tools."""
        raise NotImplementedError

    def sampling(self, stated: Stated = UNSTATED) -> SamplingParams:
        """The parameters; what the request leaves open is as stated, else by the defaults of the fields.

        Raises InputError, naming the field, for a value out of range, or one that is not supported.
        """
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """Further arguments of `Model.answer`: the form that the answer must have. Raises InputError, naming the field,
        for one that is not supported."""
        schema = None if self.response_format is None else self.response_format.schema_of_answers()
        given = {"schema": schema, "grammar": self.grammar, "regex": self.regex}
        rules = {name: rule for name, rule in given.items() if rule is not None}
        if len(rules) > 1:
            raise InputError("response_format, grammar, regex: an answer follows one rule; leave out all but one")
        drafting = {
            "prediction": self.prediction.text if self.prediction and self.prediction.text else None,
            "draft": self.most_drafted,
        }
        return rules | {name: value for name, value in drafting.items() if value is not None}

    def _sampling(self, stated: Stated, limit: int | None, max_tokens: JSON, logprobs: int | None) -> SamplingParams:
        """limit: the tokens of an answer by default. max_tokens: those of the field of this name, if they are given."""
        try:
            biases = {int(token): value for token, value in (self.logit_bias or {}).items()}
        except ValueError as error:
            raise InputError(f"logit_bias: a key is no token id: {error}") from error
        given = {
            **self.given(*RULES, *_MORE_RULES),
            **max_tokens,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "presence_penalty": self.presence_penalty or 0.0,
            "logit_bias": biases,
            "seed": self.seed,
            "stop": tuple([self.stop] if isinstance(self.stop, str) else self.stop or ()),
            "ignore_eos": self.ignore_eos,
            "logprobs": logprobs,
        }
        return sampling_params({**{name: getattr(self, name) for name in RULES}, "max_tokens": limit}, stated, given)


class ChatRequest(Request):
    """The body of a request for /v1/chat/completions."""

    kind: ClassVar[str] = "chat"

    messages: Annotated[Many[dict[str, Any]], Field(min_length=1)]
    tools: Many[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required", "any"] | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=_MOST_LOGPROBS)
    reasoning_effort: Effort | None = None

    def prompts(self, chat: Chat) -> list[Prompt]:
        """The one prompt, as token ids. chat: makes them of messages and tools."""
        tools = offered(self.tools, self.tool_choice)
        return [chat(self.messages, tools=tools, reasoning_effort=self.reasoning_effort)]

    def options(self) -> dict[str, Any]:
        """Further arguments of `Model.answer`. Raises InputError, naming the field, for one that is not supported."""
        options = super().options()
        if options.keys() & {"schema", "grammar", "regex"} and offered(self.tools, self.tool_choice):
            raise InputError("tools: an answer that follows a rule cannot call them; leave out the one or the other")
        calling = {
            "tools": self.tools,
            "tool_choice": self.tool_choice,
            "parallel_tool_calls": self.parallel_tool_calls,
        }
        return {"chat": True, **calling, **options}

    def sampling(self, stated: Stated = UNSTATED) -> SamplingParams:
        """See `Request.sampling`."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InputError("top_logprobs: needs logprobs to be true")
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        given = {} if most is None else {"max_tokens": most}
        return self._sampling(stated, None, given, (self.top_logprobs or 0) if self.logprobs else None)


class TextRequest(Request):
    """The body of a request for /v1/completions."""

    kind: ClassVar[str] = "text"

    prompt: str | Many[int] | Many[str] | Many[Many[int]]
    max_tokens: int | None = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=_MOST_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    def prompts(self, chat: Chat) -> list[Prompt]:
        """The prompts, each a text or token ids."""
        if not self.prompt:
            raise InputError("prompt: it is empty")
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [cast(Prompt, self.prompt)] if one else list(cast(Sequence[Prompt], self.prompt))

    def sampling(self, stated: Stated = UNSTATED) -> SamplingParams:
        """See `Request.sampling`."""
        if self.echo:
            raise InputError("echo: the prompt cannot be returned; leave it out")
        if self.suffix:
            raise InputError("suffix: text before a suffix cannot be completed here; leave it out")
        if self.best_of not in (None, self.n):
            raise InputError(f"best_of={self.best_of}: all {self.n} answers of n are returned; leave it out")
        return self._sampling(stated, self.max_tokens, self.given("max_tokens"), self.logprobs)


URLS: Mapping[str, type[ChatRequest] | type[TextRequest]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": TextRequest,
}


def parse_request(url: str, body: object) -> ChatRequest | TextRequest:
    """Check a body for one of URLS. Raises InputError that names each wrong field and value."""
    if url not in URLS:
        raise InputError(f"url {url!r}: choose one of {', '.join(URLS)}")
    return check_body(URLS[url], body)
