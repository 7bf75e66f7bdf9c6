"""Requests of Mistral's /v1/fim/completions, checked: text between a prompt and a suffix.

Source: https://docs.mistral.ai/api/endpoint/fim. Answers have the form of /v1/chat/completions.
"""

from pydantic import Field

from mistral_portable.api import UNSTATED, Body, Stated, Stop, Stops, sampling_params
from mistral_portable.sampling import SamplingParams

__all__ = ["FimRequest"]


class FimRequest(Body):
    """The body of a request for /v1/fim/completions. Without a suffix the prompt is continued."""

    model: str | None = None
    prompt: str
    suffix: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = None
    stop: Stop | Stops | None = None
    random_seed: int | None = None
    stream: bool | None = None

    def sampling(self, stated: Stated = UNSTATED) -> SamplingParams:
        """The parameters; what the request leaves open is as stated.

        Raises InputError, naming the field, for a value out of range.
        """
        given = {
            **self.given("temperature", "top_p", "max_tokens", "min_tokens"),
            "stop": tuple([self.stop] if isinstance(self.stop, str) else self.stop or ()),
            "seed": self.random_seed,
        }
        return sampling_params({"temperature": 0.7, "max_tokens": None}, stated, given)
