"""Streams of bytes to a client: server-sent events, and lines of JSON; kept alive while nothing is made.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mistral_portable.server.connection import ClientGone

__all__ = ["EventStream", "sse"]

_QUIET = 15.0  # seconds without an event after which a client is told that the stream lives
_STALLED = 300.0  # seconds after which a client that takes nothing is given up
_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))  # nginx would collect events


def sse(data: Any, event: str | None = None) -> bytes:
    """One event: its data, JSON or a str as it is (which must be one line), and the name of its type if it has one."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode()


class EventStream(Response):
    """A response whose body is made piece by piece.

    An error before the first piece is raised, so that it becomes an HTTP error; a later one becomes the last piece.
    If nothing has been made for 15 s the response begins with, or goes on with, `keep_alive`.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        error: Callable[[Exception], bytes],
        media_type: str = "text/event-stream",
        keep_alive: bytes = b": the answer is being made\n\n",
    ) -> None:
        """error: makes the last piece of an error amid the stream. keep_alive: a piece that clients ignore."""
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self.raw_headers.extend(_HEADERS)
        self._pieces = pieces
        self._error = error
        self._keep_alive = keep_alive
        self._sending = asyncio.Lock()
        self._started = False
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. Raises ClientGone if the client takes nothing for minutes."""
        self._sent_at = asyncio.get_running_loop().time()
        alive = asyncio.ensure_future(self._keep(send))
        try:
            async with aclosing(self._pieces) as pieces:
                async for piece in pieces:
                    await self._send(send, piece)
        except ClientGone:
            raise
        except Exception as error:
            if not self._started:
                raise
            await self._send(send, self._error(error))
        finally:
            alive.cancel()
            with suppress(asyncio.CancelledError):
                await alive
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, piece: bytes, *, more: bool = True) -> None:
        try:
            async with asyncio.timeout(_STALLED), self._sending:
                if not self._started:
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    self._started = True
                await send({"type": "http.response.body", "body": piece, "more_body": more})
        except TimeoutError:
            raise ClientGone from None
        self._sent_at = asyncio.get_running_loop().time()

    async def _keep(self, send: Send) -> None:
        """Send `keep_alive` whenever nothing has been sent for a while."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.0, self._sent_at + _QUIET - loop.time()))
            if loop.time() >= self._sent_at + _QUIET:
                self._sent_at = loop.time()
                with suppress(ClientGone):
                    await self._send(send, self._keep_alive)
