"""Options of Ollama's requests, and the fields that all of its requests for an answer have.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md and its api/types.go, whose defaults these are:
temperature 0.8, top_k 40, top_p 0.9, and repeat_last_n 64 for penalties that are given; `repeat_penalty` is off unless
it is.
"""

from typing import Literal

from pydantic import Field

from mistral_portable.api import JSON, UNSTATED, Body, Stated, Stop, Stops, any_object, sampling_params
from mistral_portable.errors import InputError
from mistral_portable.sampling import SamplingParams

__all__ = ["AnswerRequest", "Options"]

_MOST_LOGPROBS = 20


class Options(Body):
    """Sampling settings. Those of the engine, such as `num_thread`, are the server's own and ignored, and so is
    `num_ctx`: the context is as large as the server was told, and a prompt that does not fit is an error."""

    num_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Stop | Stops | None = None

    def sampling(self, stated: Stated, logprobs: int | None) -> SamplingParams:
        """A negative `num_predict` is no limit, a negative `seed` is drawn. Raises InputError, naming the field, for a
        value out of range."""
        most, top_k = self.num_predict, self.top_k
        if most == 0:
            raise InputError("options.num_predict=0: ask for a token or more, or -1 for as many as there is room for")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        given: JSON = {
            **self.given(*_SAME),
            "seed": None if self.seed is None or self.seed < 0 else self.seed,
            "stop": tuple(one for one in stop if one),
            "logprobs": logprobs,
        }
        if most is not None:
            given["max_tokens"] = None if most < 0 else most
        if top_k is not None:
            given["top_k"] = max(0, top_k)
        if self.repeat_penalty is not None:
            given["repetition_penalty"] = self.repeat_penalty
        if self.given(*_PENALTIES):
            given.setdefault("repeat_last_n", 64)
        return sampling_params(_DEFAULTS, stated, given)


_DEFAULTS: JSON = {"max_tokens": None, "temperature": 0.8, "top_k": 40, "top_p": 0.9}
_PENALTIES = ("repeat_penalty", "presence_penalty", "frequency_penalty")
_SAME = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "presence_penalty",
    "frequency_penalty",
    "repeat_last_n",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
)


class AnswerRequest(Body):
    """The fields that requests for /api/chat and /api/generate have. `think` and `keep_alive` are ignored: a model that
    reasons does so, and it stays in memory."""

    model: str = Field(min_length=1)
    stream: bool = True
    options: Options | None = None
    format: Literal["", "json"] | JSON | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=_MOST_LOGPROBS)

    @property
    def schema_(self) -> JSON | None:
        """The JSON schema that the answer follows."""
        if isinstance(self.format, str):
            return any_object() if self.format == "json" else None
        return self.format

    def sampling(self, stated: Stated = UNSTATED) -> SamplingParams:
        """Options that are left open are as stated. Raises InputError, naming the field, for a value out of range."""
        if self.logprobs and self.stream:
            raise InputError("logprobs: they come with whole answers only; set stream to false, or leave them out")
        return (self.options or Options()).sampling(stated, (self.top_logprobs or 0) if self.logprobs else None)
