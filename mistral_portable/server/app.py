"""The ASGI application: the endpoints of all APIs around one Service."""

from collections.abc import Callable, Sequence

from starlette.applications import Starlette

from mistral_portable.server import anthropic_routes, fim_routes, ollama_routes, openai_routes, response_routes
from mistral_portable.server.bodies import BodyReader
from mistral_portable.server.endpoint import Endpoint, make_route
from mistral_portable.server.service import Service

__all__ = ["APIS", "create_app"]

APIS: Sequence[Callable[[Service], list[Endpoint]]] = (
    openai_routes.endpoints,
    response_routes.endpoints,
    fim_routes.endpoints,
    anthropic_routes.endpoints,
    ollama_routes.endpoints,
)
"""The APIs: a new one adds a function from the service to its endpoints here."""


def create_app(service: Service) -> Starlette:
    """The application of all endpoints."""
    reader = BodyReader(service.settings.max_body)
    endpoints = [endpoint for api in APIS for endpoint in api(service)]
    return Starlette(routes=[make_route(endpoint, reader, service.in_thread) for endpoint in endpoints])
