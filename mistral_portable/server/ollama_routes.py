"""Ollama's API: chats and texts, whole or in lines, and what it says of the model that is loaded."""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from mistral_portable.api import JSON, check_dimensions
from mistral_portable.ollama.answers import ChatLines, GenerateLines, Lines, error
from mistral_portable.ollama.models import VERSION, ModelCard
from mistral_portable.ollama.requests import (
    ChatRequest,
    EmbeddingsRequest,
    EmbedRequest,
    GenerateRequest,
    ShowRequest,
)
from mistral_portable.server.conversations import prepare, whole, written
from mistral_portable.server.endpoint import Endpoint
from mistral_portable.server.errors import Failure, failure_of
from mistral_portable.server.events import EventStream
from mistral_portable.server.service import Job, Service

__all__ = ["endpoints"]

_TYPES = ("application/json", "application/x-ndjson")


def endpoints(service: Service) -> list[Endpoint]:
    """The operations of Ollama's API that answer or describe; there is one model, which nobody can change."""
    routes = _Routes(service)
    return [
        Endpoint("POST", "/api/chat", "Answer a chat", routes.chat, ChatRequest, media_types=_TYPES),
        Endpoint(
            "POST",
            "/api/generate",
            "Answer or continue a text",
            routes.generate,
            GenerateRequest,
            media_types=_TYPES,
        ),
        Endpoint("POST", "/api/embed", "Make vectors of texts", routes.embed, EmbedRequest),
        Endpoint("POST", "/api/embeddings", "Make a vector", routes.embed_one, EmbeddingsRequest),
        Endpoint("POST", "/api/show", "Describe a model", routes.show, ShowRequest),
        Endpoint("GET", "/api/tags", "List models", routes.tags),
        Endpoint("GET", "/api/ps", "List models in memory", routes.loaded),
        Endpoint("GET", "/api/version", "Say which Ollama's API this is", routes.version),
    ]


class _Routes:
    """Handlers of the operations."""

    def __init__(self, service: Service) -> None:
        self._service = service
        names = (service.settings.alias, *service.settings.adapters)
        self._cards = {name: ModelCard(service.model, name, service.created, service.adapter(name)) for name in names}

    async def chat(self, http: HTTPRequest, request: ChatRequest) -> Response:
        """The response to a checked request."""
        lines = ChatLines(self._service.name_of(request.model))
        if not request.messages:
            return JSONResponse(lines.loaded())
        self._service.check_ready()  # before the work of encoding
        job = await self._service.in_thread(prepare, self._service, request)
        return await self._answer(job, lines, request.stream)

    async def generate(self, http: HTTPRequest, request: GenerateRequest) -> Response:
        """The response to a checked request."""
        lines = GenerateLines(self._service.name_of(request.model))
        if not request.prompt:
            return JSONResponse(lines.loaded())
        self._service.check_ready()  # before the work of encoding
        job = await self._service.in_thread(self._generate_job, request)
        return await self._answer(job, lines, request.stream)

    async def embed(self, http: HTTPRequest, request: EmbedRequest) -> Response:
        """The vectors of texts."""
        check_dimensions("dimensions", request.dimensions, self._service.model.config.hidden_size)
        begin = time.perf_counter()
        model = self._service.name_of(request.model)
        vectors, count = await self._service.embed(request.texts, model)
        answer = {
            "model": model,
            "total_duration": round((time.perf_counter() - begin) * 1e9),
            "load_duration": 0,
            "prompt_eval_count": count,
        }
        # Some million numbers: to write them takes long.
        response: Response = await self._service.in_thread(
            lambda: JSONResponse({**answer, "embeddings": vectors.tolist()})
        )
        return response

    async def embed_one(self, http: HTTPRequest, request: EmbeddingsRequest) -> Response:
        """The vector of a text."""
        vectors, _ = await self._service.embed([request.prompt], self._service.name_of(request.model))
        return JSONResponse({"embedding": vectors[0].tolist()})

    async def show(self, http: HTTPRequest, request: ShowRequest) -> Response:
        """Describe the model, also under names that it has not."""
        return JSONResponse(self._cards[self._service.name_of(request.model)].shown())

    async def tags(self, http: HTTPRequest, body: None) -> Response:
        """The models that could be loaded: the one that is, and its adapters."""
        return JSONResponse({"models": [card.listed() for card in self._cards.values()]})

    async def loaded(self, http: HTTPRequest, body: None) -> Response:
        """The models in memory."""
        return JSONResponse({"models": [card.loaded() for card in self._cards.values()]})

    async def version(self, http: HTTPRequest, body: None) -> Response:
        """The version of the API."""
        return JSONResponse({"version": VERSION})

    def _generate_job(self, request: GenerateRequest) -> Job:
        if not request.is_text:
            return prepare(self._service, request)
        tokenizer, model = self._service.model.tokenizer, self._service.name_of(request.model)
        prompt = tokenizer.fim(request.prompt, request.suffix) if request.suffix else tokenizer.encode(request.prompt)
        params = request.sampling(self._service.stated)
        return Job(prompts=[prompt], params=params, model=model, options={"schema": request.schema_})

    async def _answer(self, job: Job, lines: Lines, stream: bool) -> Response:
        if stream:
            # Blanks before a line of JSON mean nothing; an empty line would be no JSON.
            return EventStream(
                self._lines(job, lines),
                error=lambda fault: _line(_error(failure_of(fault))),
                media_type=_TYPES[1],
                keep_alive=b" ",
            )
        generation = await whole(self._service, job)
        return JSONResponse(lines.whole(generation, self._service.model.tokenizer))

    async def _lines(self, job: Job, lines: Lines) -> AsyncGenerator[bytes, None]:
        async with aclosing(written(self._service, job, lines)) as objects:
            async for one in objects:
                yield _line(one)


def _line(one: JSON) -> bytes:
    return json.dumps(one, ensure_ascii=False).encode() + b"\n"


def _error(failure: Failure) -> JSON:
    return error(failure.message)
