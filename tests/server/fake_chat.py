"""A server that speaks the stream of /v1/chat/completions, and says what a test has written down for it."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mistral_portable.engine import Model
from mistral_portable.server import Service, Settings, info_routes
from mistral_portable.server.bodies import BodyReader
from mistral_portable.server.endpoint import make_route
from mistral_portable.server.page import page_routes

JSON = dict[str, Any]
Piece = str | JSON | threading.Event
"""Content, an answer's delta, an error, a whole chunk, which ends the answer, or an event to wait for."""

USAGE = {
    "prompt_tokens": 300,
    "completion_tokens": 12,
    "total_tokens": 312,
    "prompt_tokens_details": {"cached_tokens": 256},
}
TIMINGS = {"cache_n": 256, "prompt_n": 44, "predicted_n": 12, "predicted_ms": 250.0, "predicted_per_second": 48.0}


class FakeChat:
    """Listens on a free port of the loopback, in a thread, until `close`.

    bodies: what was asked. key: what requests must bring, if it is not None. left: set when a client went away before
    its answer had ended.
    """

    def __init__(self, model: Model) -> None:
        self.bodies: list[JSON] = []
        self.key: str | None = None
        self.left = threading.Event()
        self._scripts: deque[Sequence[Piece] | Response] = deque()
        service, reader = Service(model, Settings("tiny")), BodyReader(2**20)
        app = Starlette(
            routes=[
                *page_routes(),
                *(make_route(endpoint, reader, service) for endpoint in info_routes.endpoints(service)),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            assert self._thread.is_alive(), "the server did not start"
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/"

    def say(self, *pieces: Piece) -> None:
        """The next answer that has none yet; without any, an answer is "Hello."."""
        self._scripts.append(pieces)

    def refuse(self, status: int, message: str, **headers: str) -> None:
        """The next answer is an error."""
        self._scripts.append(JSONResponse(_error(status, message), status_code=status, headers=headers))

    def reset(self) -> None:
        """Forget all of one test before the next."""
        self.bodies.clear()
        self._scripts.clear()
        self.key = None
        self.left.clear()

    def close(self) -> None:
        """End the server and its thread."""
        self._server.should_exit = True
        self._thread.join()

    async def _models(self, request: Request) -> Response:
        if not self._allowed(request):
            return JSONResponse(_error(401, "a key is missing"), status_code=401)
        return JSONResponse({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    async def _chat(self, request: Request) -> Response:
        if not self._allowed(request):
            return JSONResponse(_error(401, "a key is missing"), status_code=401)
        self.bodies.append(await request.json())
        script = self._scripts.popleft() if self._scripts else ("Hello.",)
        if isinstance(script, Response):
            return script
        return StreamingResponse(self._stream(script), media_type="text/event-stream")

    async def _stream(self, script: Sequence[Piece]) -> AsyncIterator[str]:
        ended = False
        try:
            yield ": a comment keeps the connection alive\n\n"
            yield _event(_chunk({"role": "assistant", "content": ""}))
            for piece in script:
                if isinstance(piece, threading.Event):
                    while not piece.is_set():
                        await asyncio.sleep(0.01)
                elif isinstance(piece, dict) and ("choices" in piece or "error" in piece):
                    yield _event(piece)
                else:
                    yield _event(_chunk({"content": piece} if isinstance(piece, str) else piece))
            ended = True
            if not any(isinstance(piece, dict) and "choices" in piece for piece in script):
                yield _event(_chunk({}, "stop"))
            yield _event({"choices": [], "usage": USAGE, "timings": TIMINGS})
            yield "data: [DONE]\n\n"
        finally:
            if not ended:
                self.left.set()

    def _allowed(self, request: Request) -> bool:
        return self.key is None or request.headers.get("authorization") == f"Bearer {self.key}"


def _chunk(delta: JSON, finish: str | None = None) -> JSON:
    return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def _event(chunk: JSON) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def _error(status: int, message: str) -> JSON:
    return {"error": {"code": status, "message": message, "type": "invalid_request_error"}}
