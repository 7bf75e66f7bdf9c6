"""Mistral's API where it is not OpenAI's: text between a prompt and a suffix."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from mistral_portable.openai.answers import ChatChunks, chat_completion, usage
from mistral_portable.openai.fim import FimRequest
from mistral_portable.server.endpoint import Endpoint
from mistral_portable.server.errors import failure_of, openai_error
from mistral_portable.server.events import EventStream, sse
from mistral_portable.server.service import Job, Service

__all__ = ["endpoints"]


def endpoints(service: Service) -> list[Endpoint]:
    """The operation of this API."""
    types = ("application/json", "text/event-stream")
    handler = _Routes(service).answer
    return [Endpoint("POST", "/v1/fim/completions", "Fill in the middle", handler, FimRequest, media_types=types)]


class _Routes:
    """Handler of the operation."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def answer(self, http: HTTPRequest, request: FimRequest) -> Response:
        """The response to a checked request."""
        service = self._service
        service.check_ready()  # before the work of encoding
        job = await service.in_thread(self._job, request)
        if request.stream:
            return EventStream(self._events(job), error=lambda error: sse(openai_error(failure_of(error))))
        generations = await service.run(job)
        return JSONResponse(chat_completion(generations, job.model, service.model.tokenizer))

    def _job(self, request: FimRequest) -> Job:
        prompt = self._service.model.tokenizer.fim(request.prompt, request.suffix)
        params = request.sampling(self._service.stated)
        return Job(prompts=[prompt], params=params, model=self._service.name_of(request.model))

    async def _events(self, job: Job) -> AsyncGenerator[bytes, None]:
        """Mistral's chunks: OpenAI's, but the numbers of tokens are in the last one that has a choice."""
        chunks = ChatChunks(job.model, self._service.model.tokenizer)
        begun = False
        async with aclosing(self._service.stream(job)) as deltas:
            async for delta in deltas:
                if not begun:
                    begun = True
                    yield sse(chunks.first(0))
                for chunk in chunks.pieces(0, delta.parts, None):
                    yield sse(chunk)
                if delta.generation is not None:
                    last = chunks.last(0, delta.generation.finish_reason)
                    yield sse({**last, "usage": usage([delta.generation], 1)})
        yield sse("[DONE]")
