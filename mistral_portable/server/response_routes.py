"""OpenAI's newer API: responses, whole or streamed."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from mistral_portable.api import JSON
from mistral_portable.openai.response_answers import Response as Answer
from mistral_portable.openai.response_events import ResponseEvents
from mistral_portable.openai.responses import ResponseRequest
from mistral_portable.server.conversations import prepare, whole, written
from mistral_portable.server.endpoint import Endpoint
from mistral_portable.server.errors import failure_of
from mistral_portable.server.events import EventStream, sse
from mistral_portable.server.service import Job, Service

__all__ = ["endpoints"]


def endpoints(service: Service) -> list[Endpoint]:
    """The operation of this API; what needs kept answers is not there."""
    types = ("application/json", "text/event-stream")
    handler = _Routes(service).answer
    return [Endpoint("POST", "/v1/responses", "Answer items", handler, ResponseRequest, media_types=types)]


class _Routes:
    """Handler of the operation."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def answer(self, http: HTTPRequest, request: ResponseRequest) -> Response:
        """The response to a checked request."""
        service = self._service
        service.check_ready()  # before the work of encoding
        job = await service.in_thread(prepare, service, request)
        answer = Answer(job.model, request.settings(job.params))
        if request.stream:
            writer = ResponseEvents(answer)
            return EventStream(
                self._events(job, writer),
                error=lambda error: b"".join(map(_event, writer.fail(failure_of(error).message))),
            )
        generation = await whole(service, job)
        return JSONResponse(answer.whole(generation))

    async def _events(self, job: Job, writer: ResponseEvents) -> AsyncGenerator[bytes, None]:
        async with aclosing(written(self._service, job, writer)) as events:
            async for event in events:
                yield _event(event)


def _event(event: JSON) -> bytes:
    return sse(event, event["type"])
