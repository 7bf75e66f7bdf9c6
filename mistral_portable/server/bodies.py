"""Bodies of requests: read within bounds of bytes and time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from mistral_portable.errors import BusyError
from mistral_portable.server.connection import ClientGone
from mistral_portable.server.errors import HTTPError

__all__ = ["BodyReader"]

_SECONDS = 60.0  # that a client has to send its request
_TOGETHER = 16  # times the limit of one body: bytes of all together


class BodyReader:
    """Reads bodies for one event loop, and bounds the memory of all whose requests are not answered yet."""

    def __init__(self, most: int) -> None:
        """most: bytes of a body."""
        self._most = most
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """The body, which counts until the end of the `async with` block.

        Raises HTTPError (413, 408) if it is too large or too slow, BusyError if too many are held now.
        """
        data = bytearray()
        try:
            await self._fill(data, request)
            yield data
        finally:
            self._held -= len(data)

    async def _fill(self, data: bytearray, request: Request) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                async for part in request.stream():
                    data += part
                    self._held += len(part)
                    if len(data) > self._most:
                        raise HTTPError(413, f"the body has more than {self._most} bytes: shorten it")
                    if self._held > self._most * _TOGETHER:
                        raise BusyError("too many large requests are being answered: try again in a second")
        except TimeoutError:
            raise HTTPError(408, f"the body did not come within {_SECONDS:g} s: send it faster") from None
        except ClientDisconnect:
            raise ClientGone from None
