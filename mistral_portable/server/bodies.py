"""Bodies of requests: read within bounds of bytes and time."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from mistral_portable.errors import BusyError
from mistral_portable.server.connection import ClientGone
from mistral_portable.server.errors import HTTPError

__all__ = ["BodyReader"]

_SECONDS = 60.0  # that a client has to send its request
_TOGETHER = 16  # times the limit of one body: bytes of all that are read at a time


class BodyReader:
    """Reads bodies for one event loop, all together within a bound of memory."""

    def __init__(self, most: int) -> None:
        """most: bytes of a body."""
        self._most = most
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """The body. Raises HTTPError (413, 408) if it is too large or too slow, BusyError if too many are read now."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(_SECONDS):
                async for part in request.stream():
                    size += len(part)
                    self._held += len(part)
                    if size > self._most:
                        raise HTTPError(413, f"the body has more than {self._most} bytes: shorten it")
                    if self._held > self._most * _TOGETHER:
                        raise BusyError("the server reads too many large requests: try again in a second")
                    parts.append(part)
        except TimeoutError:
            raise HTTPError(408, f"the body did not come within {_SECONDS:g} s: send it faster") from None
        except ClientDisconnect:
            raise ClientGone from None
        finally:
            self._held -= size
        return b"".join(parts)
