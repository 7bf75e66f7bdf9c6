"""Embeddings, in OpenAI's and Mistral's form."""

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from mistral_portable.openai.embeddings import EmbeddingRequest, embedding_list
from mistral_portable.server.endpoint import Endpoint
from mistral_portable.server.service import Service

__all__ = ["endpoints"]


def endpoints(service: Service) -> list[Endpoint]:
    """The operation of this API."""

    async def embed(http: HTTPRequest, request: EmbeddingRequest) -> Response:
        model, encoding = service.name_of(request.model), request.encoding_format
        vectors, tokens = await service.embed(request.prompts(service.model.config.hidden_size), model)
        # Some million numbers: to write them takes long.
        response: Response = await service.in_thread(
            lambda: JSONResponse(embedding_list(vectors, tokens, model, encoding))
        )
        return response

    return [Endpoint("POST", "/v1/embeddings", "Make vectors of texts", embed, EmbeddingRequest)]
