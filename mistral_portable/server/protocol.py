"""HTTP on a connection: uvicorn's protocol over h11, with a bound on the time of a request's head, and errors in JSON.

uvicorn bounds how long a connection is idle between two requests, not before the first one, and not while a head comes:
clients that send a byte now and then would hold all file descriptors of the process.
"""

import asyncio
import json
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mistral_portable.server.errors import Failure, openai_error

__all__ = ["HTTPProtocol"]

_SECONDS = 60.0  # that a client has to send the head of a request, or the rest of one that is answered
_LINGERING = 2.0  # seconds in which a client can read why it was refused
_TOO_LARGE = 431


class HTTPProtocol(H11Protocol):
    """One connection."""

    _timer: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, and not for ever."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        self._unwatch()

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request, unless it has been refused."""
        if not self._refused:
            super().data_received(data)
            self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, if no response has begun, and close. uvicorn calls this where h11 has raised."""
        error = sys.exception()
        if not isinstance(error, h11.RemoteProtocolError) or self.conn.our_state is not h11.IDLE:
            self.transport.close()
            return
        status, text = 400, f"this is no HTTP request: {error}"
        if error.error_status_hint == _TOO_LARGE:
            status, text = _TOO_LARGE, "the headers of the request are too large: shorten them"
        body = json.dumps(openai_error(Failure(status, text))).encode()
        headers = [("content-type", "application/json"), ("connection", "close")]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        # What has come is taken and not looked at: to close before would reset the connection, and the client might
        # never see the response.
        self._refused = True
        self.transport.write_eof()
        self._unwatch()
        self._timer = self.loop.call_later(_LINGERING, self.transport.close)

    def _watch(self) -> None:
        """Start the time of a head, or of the rest of a body that nobody reads any more; end it otherwise."""
        if self.conn.their_state is not h11.IDLE and self.conn.our_state is not h11.DONE:
            self._unwatch()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
