"""Failures: what an exception means for a client, whatever the API's form of errors."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mistral_portable.anthropic.answers import error as anthropic_error
from mistral_portable.errors import BusyError, CapacityError, ClosedError, ContextError, InputError, TokenizerError
from mistral_portable.ollama.answers import error as ollama_error
from mistral_portable.server.queue import QueueFull

__all__ = ["Failure", "HTTPError", "error_body", "failure_of", "openai_error"]

_LOG = logging.getLogger(__name__)

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "unavailable_error",
}


@dataclass(frozen=True)
class Failure:
    """status: HTTP's. message: one line. headers: of the response. code: OpenAI's name of the fault, if it has one."""

    status: int
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)
    code: str | None = None

    @property
    def kind(self) -> str:
        """The type of the error as llama-server names it, such as "invalid_request_error"."""
        return _KINDS[self.status]


class HTTPError(Exception):
    """A failure that is about the request as HTTP: its size, its key, its path."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.failure = Failure(status, message, headers or {})


def failure_of(error: Exception) -> Failure:
    """The failure that an exception is. A defect of ours is logged with its traceback, and not shown to clients."""
    if isinstance(error, HTTPError):
        return error.failure
    message = " ".join(str(error).split())
    if isinstance(error, InputError | TokenizerError):
        return Failure(400, message, code="context_length_exceeded" if isinstance(error, ContextError) else None)
    if isinstance(error, BusyError):
        return Failure(503, message, {"Retry-After": str(error.retry_after if isinstance(error, QueueFull) else 1)})
    if isinstance(error, CapacityError | ClosedError):
        return Failure(503, message)
    _LOG.error("a request failed", exc_info=error)
    return Failure(500, "the server failed at this request: its log says why")


def error_body(path: str, failure: Failure) -> dict[str, Any]:
    """The body of an error in the form of the API that a path belongs to: Anthropic's, Ollama's, or else OpenAI's."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return anthropic_error(failure.status, failure.message)
    if path.startswith("/api/"):
        return ollama_error(failure.message)
    return openai_error(failure)


def openai_error(failure: Failure) -> dict[str, Any]:
    """The body of an error in OpenAI's and llama-server's form."""
    error = {"code": failure.code or failure.status, "message": failure.message, "type": failure.kind, "param": None}
    return {"error": error}
