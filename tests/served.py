"""A server on a free port, for tests with real clients."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from mistral_portable.engine import Model
from mistral_portable.server import Service, Settings, create_app

__all__ = ["served"]


@contextmanager
def served(model: Model, **settings: object) -> Iterator[str]:
    """The address of a server of the model, such as "http://127.0.0.1:40123", for the duration of a `with` block."""
    app = create_app(Service(model, Settings(alias="tiny", **settings)))  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
