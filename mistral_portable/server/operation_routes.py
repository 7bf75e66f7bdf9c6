"""Endpoints for operators and their machines: health, readiness, metrics, and which requests there are."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mistral_portable.server.endpoint import Endpoint
from mistral_portable.server.service import Service

__all__ = ["endpoints"]

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def endpoints(service: Service) -> list[Endpoint]:
    """The operations that are no API of a model."""

    async def health(request: Request, body: None) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request, body: None) -> Response:
        service.check_ready()
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request, body: None) -> Response:
        return Response(service.metrics.text(), headers={"content-type": _METRICS_TYPE})

    return [
        Endpoint("GET", "/health", "Say that the server lives", health, public=True),
        Endpoint("GET", "/ready", "Say whether a request would find room now: 200 or 503", ready, public=True),
        Endpoint("GET", "/metrics", "Count, for Prometheus", metrics, media_types=("text/plain",)),
    ]
