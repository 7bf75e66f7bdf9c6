"""Logs: one line for each request, as text or JSON, without prompts, answers and keys."""

import json
import logging
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["RECORD", "RequestLog", "set_up_logging"]

_LOG = logging.getLogger(__name__)

RECORD: ContextVar[dict[str, Any] | None] = ContextVar("RECORD", default=None)
"""The log's line, so far, of the request that runs in this context; None outside of requests."""


class RequestLog:
    """Gives every request an id, sent as X-Request-Id, and writes a line when its response has ended."""

    def __init__(self, app: ASGIApp, *, count: Callable[[str, int, float], None]) -> None:
        """count: called with (path of the route, status, seconds) for each request."""
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        record: dict[str, Any] = {"request_id": f"req_{uuid.uuid4().hex}", "method": scope["method"]}
        record |= {"path": scope["path"], "status": 500}
        token = RECORD.set(record)
        begin = time.perf_counter()

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                record["status"] = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = record["request_id"]
            await send(message)

        try:
            await self._app(scope, receive, marked)
        finally:
            seconds = time.perf_counter() - begin
            record["ms"] = round(seconds * 1000, 1)
            RECORD.reset(token)
            route = scope.get("route")
            self._count(route.path if route else "other", record["status"], seconds)
            _LOG.info("%s %s %s", record["method"], record["path"], record["status"], extra={"record": record})


class _JSONLines(logging.Formatter):
    """One JSON object in a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "record", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _TextLines(logging.Formatter):
    """The time, the message and what else is known of a request, on one printable line; tracebacks below."""

    def format(self, record: logging.LogRecord) -> str:
        known = getattr(record, "record", {})
        rest = [f"{name}={value}" for name, value in known.items() if name not in ("method", "path", "status")]
        text = " ".join([f"{self.formatTime(record)}", record.getMessage(), *rest])
        text = text.encode("ascii", "backslashreplace").decode().replace("\n", " ").replace("\x1b", "\\x1b")
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def set_up_logging(form: Literal["text", "json"]) -> None:
    """Send the lines of the server, and uvicorn's warnings, to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JSONLines() if form == "json" else _TextLines())
    for name, level in (("mistral_portable", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
