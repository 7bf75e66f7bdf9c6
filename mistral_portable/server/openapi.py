"""The OpenAPI document, made from the endpoints and the pydantic models that check their requests.

Source: https://spec.openapis.org/oas/v3.1.0.
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mistral_portable.server.endpoint import Endpoint

__all__ = ["openapi_document"]

_ERROR = {
    "description": "An error: 400 for what the request asks, 401 for its key, 403 for its Host or Origin, 404 for a "
    "name, 413 for its size, 503 with Retry-After if the server is busy, 500 for a defect.",
    "content": {"application/json": {"schema": {"type": "object"}}},
}


def openapi_document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """OpenAPI 3.1, as JSON."""
    bodies: set[type[BaseModel]] = {endpoint.body for endpoint in endpoints if endpoint.body is not None}
    ordered = sorted(bodies, key=lambda body: body.__name__)
    reference = "#/components/schemas/{model}"
    names, schemas = models_json_schema([(body, "validation") for body in ordered], ref_template=reference)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        operation: dict[str, Any] = {"summary": endpoint.summary, "responses": _responses(endpoint)}
        path, parameters = _path(endpoint.path)
        if parameters:
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
            ]
        if endpoint.body is not None:
            operation["requestBody"] = {
                "required": not endpoint.optional_body,
                "content": {"application/json": {"schema": names[endpoint.body, "validation"]}},
            }
        if endpoint.public:
            operation["security"] = []
        paths.setdefault(path, {})[endpoint.method.lower()] = operation
    keys = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "mistral_portable", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas.get("$defs", {}), "securitySchemes": keys},
        "security": [{"bearer": []}, {"header": []}],
    }


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    content: dict[str, Any] = {media_type: {"schema": {}} for media_type in endpoint.media_types}
    return {"200": {"description": endpoint.summary, "content": content}, "default": _ERROR}


def _path(path: str) -> tuple[str, list[str]]:
    """A path as OpenAPI writes it, and its parameters: "/v1/models/{model:path}" -> "/v1/models/{model}", ["model"]."""
    names = re.findall(r"{(\w+)(?::\w+)?}", path)
    return re.sub(r"{(\w+):\w+}", r"{\1}", path), names
