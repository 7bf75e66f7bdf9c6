"""OpenAI's API: chats, texts and models."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from mistral_portable.anthropic.answers import model_card as anthropic_card
from mistral_portable.openai.answers import ChatChunks, TextChunks, chat_completion, text_completion, timings
from mistral_portable.openai.messages import finish_reason
from mistral_portable.openai.models import model_card
from mistral_portable.openai.requests import ChatRequest, Request, TextRequest
from mistral_portable.server.endpoint import Endpoint
from mistral_portable.server.errors import HTTPError, failure_of, openai_error
from mistral_portable.server.events import EventStream, sse
from mistral_portable.server.service import Job, Service

__all__ = ["endpoints"]

_ANTHROPIC = "anthropic-version"  # a header that its clients always send
_MISTRAL = "mistral-client-"  # begins the User-Agent of its clients, which refuse a piece of a call
_MEDIA_TYPES = ("application/json", "text/event-stream")


def endpoints(service: Service) -> list[Endpoint]:
    """The operations of OpenAI's API."""
    answer, models = _Answering(service).answer, _Models(service)
    return [
        Endpoint("POST", "/v1/chat/completions", "Answer a chat", answer, ChatRequest, media_types=_MEDIA_TYPES),
        Endpoint("POST", "/v1/completions", "Continue texts", answer, TextRequest, media_types=_MEDIA_TYPES),
        Endpoint("GET", "/v1/models", "List models: the one that is loaded", models.all),
        Endpoint("GET", "/v1/models/{model:path}", "Describe a model", models.one),
    ]


class _Answering:
    """Chats and texts, streamed or whole."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def answer(self, http: HTTPRequest, request: ChatRequest | TextRequest) -> Response:
        """The response to a checked request."""
        self._service.check_ready()  # before the work of encoding
        job = await self._service.in_thread(self._job, request)
        if request.stream:
            whole_calls = http.headers.get("user-agent", "").startswith(_MISTRAL)
            events = self._events(request, job, whole_calls)
            return EventStream(events, error=lambda error: sse(openai_error(failure_of(error))))
        generations = await self._service.run(job)
        body = await self._service.in_thread(self._body, request, job.model, generations)
        return Response(body, media_type="application/json")

    def _job(self, request: Request) -> Job:
        """Make the job of a request: the one place that knows how. Raises InputError or TokenizerError."""
        model = self._service.model
        params, options = request.sampling(self._service.stated), request.options()
        return Job(
            prompts=request.prompts(lambda messages, **options: model.tokenizer.chat(messages, **options)),
            params=params,
            model=self._service.name_of(request.model),
            n=request.n,
            user=request.user or "",
            cache_salt=request.cache_salt or "",
            options=options,
        )

    def _body(self, request: ChatRequest | TextRequest, name: str, generations: Any) -> bytes:
        model = self._service.model
        if isinstance(request, ChatRequest):
            body = chat_completion(generations, name, model.tokenizer)
        else:
            tokenizer = model.tokenizer if model.has_tokenizer else None
            body = text_completion(generations, request.n, name, tokenizer)
        return json.dumps({**body, "timings": timings(generations)}, ensure_ascii=False).encode()

    async def _events(
        self, request: ChatRequest | TextRequest, job: Job, whole_calls: bool
    ) -> AsyncGenerator[bytes, None]:
        """The events of a stream: the one place that turns deltas into chunks. whole_calls: as `ChatChunks` has it."""
        model = self._service.model
        chunks: ChatChunks | TextChunks
        if isinstance(request, ChatRequest):
            chunks = ChatChunks(job.model, model.tokenizer, whole_calls=whole_calls)
        else:
            chunks = TextChunks(job.model, request.n, model.tokenizer if model.has_tokenizer else None)
        wants_logprobs = job.params.logprobs is not None
        begun = set[int]()
        found = {}
        async with aclosing(self._service.stream(job)) as deltas:
            async for delta in deltas:
                if isinstance(chunks, ChatChunks) and delta.index not in begun:
                    begun.add(delta.index)
                    yield sse(chunks.first(delta.index))
                for chunk in chunks.pieces(delta.index, delta.parts, delta.sampled if wants_logprobs else None):
                    yield sse(chunk)
                if delta.generation is not None:
                    found[delta.index] = delta.generation
                    is_chat = isinstance(chunks, ChatChunks)
                    reason = finish_reason(delta.generation) if is_chat else delta.generation.finish_reason
                    last = chunks.last(delta.index, reason)
                    if len(found) == len(job.prompts) * job.n:
                        last["timings"] = timings(list(found.values()))
                    yield sse(last)
        if request.include_usage:
            yield sse(chunks.usage([found[index] for index in sorted(found)]))
        yield sse("[DONE]")


class _Models:
    """The list of models: the one that is served, and each adapter of it."""

    def __init__(self, service: Service) -> None:
        names = (service.settings.alias, *service.settings.adapters)
        self._cards = {name: model_card(service.model, name, service.created) for name in names}
        self._anthropic = {name: anthropic_card(name, service.created) for name in names}

    async def all(self, http: HTTPRequest, body: None) -> Response:
        """OpenAI's and Mistral's list; Anthropic's for its own clients, which ask at the same place."""
        if _ANTHROPIC in http.headers:
            names = list(self._anthropic)
            ends = {"first_id": names[0], "last_id": names[-1], "has_more": False}
            return JSONResponse({"data": list(self._anthropic.values()), **ends})
        return JSONResponse({"object": "list", "data": list(self._cards.values())})

    async def one(self, http: HTTPRequest, body: None) -> Response:
        """A model, under its own name only."""
        name = http.path_params["model"]
        if name not in self._cards:
            there = ", ".join(map(repr, self._cards))
            raise HTTPError(404, f"model {name!r:.80}: this server has {there} only")
        return JSONResponse((self._anthropic if _ANTHROPIC in http.headers else self._cards)[name])
