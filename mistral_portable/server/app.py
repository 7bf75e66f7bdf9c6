"""The ASGI application: the endpoints of all APIs around one Service, behind guards."""

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mistral_portable.server import (
    anthropic_routes,
    embedding_routes,
    fim_routes,
    info_routes,
    ollama_routes,
    openai_routes,
    operation_routes,
    response_routes,
    session_routes,
    token_routes,
)
from mistral_portable.server.bodies import BodyReader
from mistral_portable.server.endpoint import Endpoint, make_route
from mistral_portable.server.errors import Failure, error_body
from mistral_portable.server.guard import HostGuard, KeyGuard
from mistral_portable.server.logs import RequestLog
from mistral_portable.server.openapi import openapi_document
from mistral_portable.server.page import page_routes
from mistral_portable.server.service import Service

__all__ = ["APIS", "create_app"]

APIS: Sequence[Callable[[Service], list[Endpoint]]] = (
    openai_routes.endpoints,
    response_routes.endpoints,
    fim_routes.endpoints,
    embedding_routes.endpoints,
    anthropic_routes.endpoints,
    ollama_routes.endpoints,
    token_routes.endpoints,
    session_routes.endpoints,
    operation_routes.endpoints,
    info_routes.endpoints,
)
"""The APIs: a new one adds a function from the service to its endpoints here."""


def create_app(service: Service) -> Starlette:
    """The application of all endpoints, and the web page."""
    settings = service.settings
    endpoints = [endpoint for api in APIS for endpoint in api(service)]
    endpoints.append(_document(endpoints, with_keys=bool(settings.keys)))
    page = page_routes()
    public = [endpoint.path for endpoint in endpoints if endpoint.public] + [route.path for route in page]
    cors = Middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"])
    reader = BodyReader(settings.max_body)
    app = Starlette(
        routes=[*page, *(make_route(endpoint, reader, service) for endpoint in endpoints)],
        middleware=[
            Middleware(RequestLog, count=service.metrics.count_request),
            Middleware(HostGuard, allowed=settings.allowed_hosts),
            *([cors] if settings.cors_origins else []),
            Middleware(KeyGuard, keys=settings.keys, origins=settings.cors_origins, public=public),
        ],
        exception_handlers={HTTPException: _unrouted},
    )
    app.router.redirect_slashes = False  # a redirect would repeat the Host header
    return app


def _document(endpoints: Sequence[Endpoint], *, with_keys: bool) -> Endpoint:
    """The endpoint of the OpenAPI document, which describes itself, too."""

    async def openapi(request: Request, body: None) -> Response:
        return JSONResponse(document)

    own = Endpoint("GET", "/openapi.json", "Describe all requests", openapi)
    document = openapi_document([*endpoints, own], with_keys=with_keys)
    return own


async def _unrouted(request: Request, error: Exception) -> Response:
    """The response where there is no endpoint: 404, or 405 if there is one of another method."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path!r:.80}"
    failure = Failure(error.status_code, f"{what}: there is no such endpoint; GET /openapi.json lists them")
    return JSONResponse(error_body(request.url.path, failure), failure.status, error.headers)
