"""Requests and answers of /v1/embeddings, OpenAI's and Mistral's.

Sources: https://platform.openai.com/docs/api-reference/embeddings, https://docs.mistral.ai/api/endpoint/embeddings.
"""

import base64
import uuid
from typing import Annotated, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, Field

from mistral_portable.api import JSON, Body, Many, check_dimensions
from mistral_portable.engine.prompts import Prompt

__all__ = ["EmbeddingRequest", "embedding_list"]

_MOST = 2048  # inputs of a request, as OpenAI allows
_Inputs = Field(min_length=1, max_length=_MOST)


class EmbeddingRequest(Body):
    """The body of a request for /v1/embeddings."""

    model: str | None = None
    input: (
        str
        | Annotated[Many[str], _Inputs]
        | Annotated[Many[int], Field(min_length=1)]
        | Annotated[Many[Many[int]], _Inputs]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, validation_alias=AliasChoices("dimensions", "output_dimension"))
    output_dtype: Literal["float"] = "float"

    def prompts(self, size: int) -> list[Prompt]:
        """The inputs, each a text or token ids. size: of the model's embeddings. Raises InputError if another one is
        asked for."""
        check_dimensions("dimensions", self.dimensions, size)
        one = isinstance(self.input, str) or isinstance(self.input[0], int)
        return [cast(Prompt, self.input)] if one else cast(list[Prompt], self.input)


def embedding_list(vectors: NDArray[np.float32], tokens: int, model: str, encoding: Literal["float", "base64"]) -> JSON:
    """The answer. vectors: [inputs, size]; as base64 they are float32, little-endian. tokens: of all inputs."""
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, encoding)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    return {"id": f"embd-{uuid.uuid4().hex}", "object": "list", "data": data, "model": model, "usage": usage}


def _encoded(vector: NDArray[np.float32], encoding: Literal["float", "base64"]) -> list[float] | str:
    if encoding == "float":
        return cast(list[float], vector.tolist())
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
