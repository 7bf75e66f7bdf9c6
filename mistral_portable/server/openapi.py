"""The OpenAPI document, made from the endpoints and the pydantic models that check their requests.

Source: https://spec.openapis.org/oas/v3.1.0.
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mistral_portable.server.endpoint import Endpoint
from mistral_portable.server.errors import Failure, error_body

__all__ = ["openapi_document"]

_ERRORS = {
    400: "The request asks for what cannot be; the message names the place and the value.",
    401: "It has no valid key.",
    403: "Its Host header is not this server's name, or its Origin another server's page.",
    404: "There is nothing of this name.",
    408: "Its body did not come in time.",
    413: "Its body is too large.",
    500: "A defect, which the log describes.",
    503: "The server is busy, or ends.",
}


def openapi_document(endpoints: Sequence[Endpoint], *, with_keys: bool) -> dict[str, Any]:
    """OpenAPI 3.1, as JSON. with_keys: whether requests need one."""
    bodies: set[type[BaseModel]] = {endpoint.body for endpoint in endpoints if endpoint.body is not None}
    ordered = sorted(bodies, key=lambda body: body.__name__)
    reference = "#/components/schemas/{model}"
    names, schemas = models_json_schema([(body, "validation") for body in ordered], ref_template=reference)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        operation: dict[str, Any] = {"summary": endpoint.summary, "responses": _responses(endpoint, with_keys)}
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
        if endpoint.public and with_keys:
            operation["security"] = []
        paths.setdefault(path, {})[endpoint.method.lower()] = operation
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "mistral_portable", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas.get("$defs", {})},
    }
    if with_keys:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
        }
        document["security"] = [{"bearer": []}, {"header": []}]
    return document


def _responses(endpoint: Endpoint, with_keys: bool) -> dict[str, Any]:
    content: dict[str, Any] = {media_type: {"schema": {}} for media_type in endpoint.media_types}
    statuses = {403, 500, 503, *endpoint.errors}
    if with_keys and not endpoint.public:
        statuses.add(401)
    if endpoint.body is not None:
        statuses |= {400, 408, 413}
    if "{" in endpoint.path:
        statuses |= {400, 404}
    found: dict[str, Any] = {"200": {"description": endpoint.summary, "content": content}}
    return found | {str(status): _error(endpoint, status) for status in sorted(statuses)}


def _error(endpoint: Endpoint, status: int) -> dict[str, Any]:
    """The response of an error."""
    failures = [Failure(status, "a message")]
    if status == 400:
        failures.append(Failure(status, "a message", code="context_length_exceeded"))
    forms = [_schema_of(error_body(endpoint.path, failure)) for failure in failures]
    schema = forms[0] if forms[0] == forms[-1] else {"anyOf": forms}
    error = {"description": _ERRORS[status], "content": {"application/json": {"schema": schema}}}
    if status == 503:
        text = "Seconds after which to try again; not there if the server ends."
        error["headers"] = {"Retry-After": {"description": text, "schema": {"type": "integer", "minimum": 1}}}
    return error


def _schema_of(sample: object) -> dict[str, Any]:
    """The schema of values that have the fields and types of a sample."""
    if isinstance(sample, dict):
        properties = {name: _schema_of(value) for name, value in sample.items()}
        return {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": _TYPES[type(sample)]}


_TYPES = {str: "string", int: "integer", type(None): "null"}


def _path(path: str) -> tuple[str, list[str]]:
    """A path as OpenAPI writes it, and its parameters: "/v1/models/{model:path}" -> "/v1/models/{model}", ["model"]."""
    names = re.findall(r"{(\w+)(?::\w+)?}", path)
    return re.sub(r"{(\w+):\w+}", r"{\1}", path), names
