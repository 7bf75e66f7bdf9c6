"""The server: HTTP APIs over one loaded model. Needs the extra `[server]`; nothing else of the library imports it.

`create_app(service)` is an ASGI application; `serve` runs it on a socket until SIGTERM. An API is a function from a
`Service` to a list of `Endpoint`s, which `app.py` puts together.
"""

from mistral_portable.server.app import create_app
from mistral_portable.server.service import Delta, Job, Service
from mistral_portable.server.settings import Settings

__all__ = ["Delta", "Job", "Service", "Settings", "create_app"]
