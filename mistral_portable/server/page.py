"""The web page at `/`: starlette routes of the static files in `page/`, with the headers that keep the page closed.

The files are read once, and each has a route of its own, so no request reaches the disk.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["CONTENT_SECURITY_POLICY", "page_routes"]

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        # No other host: an image in an answer must not tell anybody that it was shown.
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # HTML enters the document through DOMPurify or not at all.
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    ]
)
"""Scripts, styles and requests of the page's own origin only, none of them inline."""

_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A browser asks each time and mostly hears 304: after an update no module meets one of the version before.
    "Cache-Control": "no-cache",
}
_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "mjs": "text/javascript",
    "svg": "image/svg+xml",
    "md": "text/plain",
    "marked": "text/plain",
    "dompurify": "text/plain",
}


def page_routes() -> list[Route]:
    """A route for each file: `/` for index.html, `/page/NAME` for the others. None needs a key, as none is a user's."""
    return [
        Route("/" if name == "index.html" else f"/page/{name}", _sender(file))
        for name, file in _walk(files("mistral_portable.server") / "page")
    ]


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    """The files below a folder, with their names from there on: ("vendor/marked.esm.js", ...)."""
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry


def _sender(file: Traversable) -> Callable[[Request], Awaitable[Response]]:
    content, media_type = file.read_bytes(), _TYPES[file.name.rpartition(".")[2]]
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": etag}

    async def send(request: Request) -> Response:
        if etag in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return send
