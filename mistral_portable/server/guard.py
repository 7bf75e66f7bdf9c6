"""Guards in front of all endpoints: which names the server answers to, which pages may call it, and keys.

HostGuard is against DNS rebinding: a web page lets its own name point to 127.0.0.1, and the browser then counts the
server as the page's own; but the Host header still has the page's name. KeyGuard also refuses what a page of another
origin sends, for a browser sends a simple POST unasked, and only hides the answer from the page.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mistral_portable.server.errors import Failure, error_body

__all__ = ["LOCAL_HOSTS", "HostGuard", "KeyGuard"]

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_ANY_ADDRESS = ("0.0.0.0", "::")


class HostGuard:
    """Refuses requests whose Host header names none of `allowed`, with 403.

    If one of them is 0.0.0.0 or ::, the server is bound to all addresses, and any address is allowed; no name is.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        """allowed: names and addresses without a port; empty: any, "*": any."""
        self._app = app
        self._allowed = {name.lower().strip("[]") for name in allowed}
        self._any = not allowed or "*" in self._allowed
        self._any_address = any(address in self._allowed for address in _ANY_ADDRESS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        host = _hostname(Headers(scope=scope).get("host", ""))
        if not (self._any or host in self._allowed or (self._any_address and _is_address(host))):
            message = f"Host {host!r:.80} is not one of this server's names: start it with --allowed-host"
            await _refuse(scope, receive, send, Failure(403, message))
            return
        await self._app(scope, receive, send)


class KeyGuard:
    """Refuses requests without one of the keys (401), and those that change something, from a foreign page (403)."""

    def __init__(self, app: ASGIApp, *, keys: Sequence[str], origins: Collection[str], public: Collection[str]) -> None:
        """origins: of foreign pages that may call. public: paths that need no key."""
        self._app = app
        self._keys = [_digest(key.encode()) for key in keys]
        self._origins = set(origins)
        self._public = set(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD") and not self._is_own(origin, headers):
            message = f"Origin {origin!r:.80} is another server's page: start this one with --cors-origin to allow it"
            await _refuse(scope, receive, send, Failure(403, message))
        elif self._keys and scope["path"] not in self._public and not self._has_key(headers):
            message = "no valid key: send one as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'"
            await _refuse(scope, receive, send, Failure(401, message, {"WWW-Authenticate": "Bearer"}))
        else:
            await self._app(scope, receive, send)

    def _is_own(self, origin: str, headers: Headers) -> bool:
        """Whether a page comes from this server, by the name that its user typed, or is allowed."""
        return origin in self._origins or "*" in self._origins or origin.partition("://")[2] == headers.get("host")

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = [key.strip()] if scheme.lower() == "bearer" else []
        given += headers.getlist("x-api-key")
        # No early end: the time tells neither which key is nearly right, nor how many there are.
        found = [hmac.compare_digest(_digest(one.encode("latin-1")), key) for one in given for key in self._keys]
        return any(found)


def _digest(key: bytes) -> bytes:
    """Digests are equally long, whatever the key."""
    return hashlib.sha256(key).digest()


def _hostname(header: str) -> str:
    """The name in a Host header: "[::1]:8080" -> "::1". Empty if it is none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _refuse(scope: Scope, receive: Receive, send: Send, failure: Failure) -> None:
    response = JSONResponse(error_body(scope["path"], failure), failure.status, dict(failure.headers))
    await response(scope, receive, send)
