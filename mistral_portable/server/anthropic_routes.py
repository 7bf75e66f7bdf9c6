"""Anthropic's API: messages, whole or streamed, and the number of tokens of one."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from mistral_portable.anthropic.answers import error, message
from mistral_portable.anthropic.events import PING, MessageEvents
from mistral_portable.anthropic.requests import CountRequest, MessagesRequest
from mistral_portable.api import JSON
from mistral_portable.server.conversations import prepare, whole, written
from mistral_portable.server.endpoint import Endpoint
from mistral_portable.server.errors import Failure, failure_of
from mistral_portable.server.events import EventStream, sse
from mistral_portable.server.service import Job, Service

__all__ = ["endpoints"]


def endpoints(service: Service) -> list[Endpoint]:
    """The operations of Anthropic's API."""
    routes = _Routes(service)
    count = "Count the tokens of a message"
    return [
        Endpoint(
            "POST",
            "/v1/messages",
            "Answer a message",
            routes.answer,
            MessagesRequest,
            media_types=("application/json", "text/event-stream"),
        ),
        Endpoint("POST", "/v1/messages/count_tokens", count, routes.count, CountRequest),
    ]


class _Routes:
    """Handlers of the operations."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def answer(self, http: HTTPRequest, request: MessagesRequest) -> Response:
        """The response to a checked request."""
        service = self._service
        service.check_ready()  # before the work of encoding
        job = await service.in_thread(prepare, service, request)
        if request.stream:
            return EventStream(
                self._events(job),
                error=lambda fault: _event(_error(failure_of(fault))),
                keep_alive=sse(PING, "ping"),
            )
        generation = await whole(service, job)
        return JSONResponse(message(generation, job.model))

    async def count(self, http: HTTPRequest, request: CountRequest) -> Response:
        """The number of tokens of a conversation, its template included."""
        tokenizer = self._service.model.tokenizer
        tokens = await self._service.in_thread(
            lambda: tokenizer.chat(request.chat(), tools=request.functions() or None)
        )
        return JSONResponse({"input_tokens": len(tokens)})

    async def _events(self, job: Job) -> AsyncGenerator[bytes, None]:
        writer = MessageEvents(job.model, len(job.prompts[0]))
        async with aclosing(written(self._service, job, writer)) as events:
            async for event in events:
                yield _event(event)


def _event(event: JSON) -> bytes:
    return sse(event, event["type"])


def _error(failure: Failure) -> JSON:
    return error(failure.status, failure.message)
