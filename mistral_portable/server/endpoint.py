"""Endpoint: one operation of an API, with all that its route and the OpenAPI document need."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from mistral_portable.api import parse_body
from mistral_portable.server.bodies import BodyReader
from mistral_portable.server.connection import ClientGone, while_connected
from mistral_portable.server.errors import error_body, failure_of
from mistral_portable.server.service import Service

__all__ = ["Endpoint", "make_route"]


@dataclass(frozen=True)
class Endpoint:
    """method, path: where, the path as starlette writes it ("/v1/models/{model}"). summary: for the OpenAPI document.
    handler: called with the request and the checked body (None without one), returns the response; it is cancelled if
    the client goes away, and any exception of it becomes an error response. body: the model that checks JSON.
    optional_body: an empty body is None. media_types: of the response, for the OpenAPI document. errors: statuses that
    it has besides those that follow from the rest. public: no key is needed.
    """

    method: str
    path: str
    summary: str
    handler: Callable[[Request, Any], Awaitable[Response]]
    body: type[BaseModel] | None = None
    optional_body: bool = False
    media_types: Sequence[str] = ("application/json",)
    errors: Sequence[int] = ()
    public: bool = False


def make_route(endpoint: Endpoint, reader: BodyReader, service: Service) -> Route:
    """The route of an endpoint."""
    return Route(endpoint.path, _Operation(endpoint, reader, service), methods=[endpoint.method])


class _Operation:
    """The ASGI application of an endpoint: reads and checks the body, answers, and turns exceptions into errors."""

    def __init__(self, endpoint: Endpoint, reader: BodyReader, service: Service) -> None:
        self._endpoint = endpoint
        self._reader = reader
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def counted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        request = Request(scope, receive)
        try:
            if self._endpoint.body is None:
                await while_connected(receive, self._answer(request, None, counted))
            else:
                async with self._reader.read(request) as data:
                    body = await self._check(self._endpoint.body, data)
                    await while_connected(receive, self._answer(request, body, counted))
        except ClientGone:
            if not started:  # nobody reads it; the log says 499, as nginx does
                await send({"type": "http.response.start", "status": 499, "headers": []})
                await send({"type": "http.response.body", "body": b""})
        except Exception as error:
            if started:
                raise
            failure = failure_of(error)
            response = JSONResponse(error_body(scope["path"], failure), failure.status, dict(failure.headers))
            await response(scope, receive, send)

    async def _check(self, model: type[BaseModel], data: bytearray) -> BaseModel | None:
        if not data and self._endpoint.optional_body:
            return None
        checked: BaseModel = await self._service.in_thread(parse_body, model, data)
        return checked

    async def _answer(self, request: Request, body: Any, send: Send) -> None:
        response = await self._endpoint.handler(request, body)
        await response(request.scope, request.receive, send)
