"""The web page at `/`: starlette routes of the static files in `page/`, with the headers that keep the page closed.

The files are read once, so no request reaches the disk, and a path is a key of a dict, so none leaves the folder.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _File:
    """A file as it is sent. etag: a quoted digest of its bytes."""

    content: bytes
    media_type: str
    etag: str


def page_routes() -> list[Route]:
    """The routes `/` (index.html) and `/page/NAME` (all files); they need no key, as they hold nothing of a user."""
    pages = {name: _read(file) for name, file in _walk(files("mistral_portable.server") / "page")}

    async def send(request: Request) -> Response:
        file = pages.get(request.path_params.get("name", "index.html"))
        if file is None:
            return Response("not found", status_code=404, media_type="text/plain", headers=_HEADERS)
        headers = {**_HEADERS, "ETag": file.etag}
        if file.etag in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)

    return [Route("/", send), Route("/page/{name:path}", send)]


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry


def _read(file: Traversable) -> _File:
    content = file.read_bytes()
    return _File(content, _TYPES[file.name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
