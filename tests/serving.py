"""A server in this process, on a free port of the loopback, for tests that need real connections."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

import mistral_portable as mp
from mistral_portable.server import Service, Settings
from mistral_portable.server.lifecycle import listen_tcp, make_server

CHAT = [{"role": "user", "content": "Tom has a red ball. What color is the ball?"}]
PATIENCE = 120  # seconds; the machines that run this are shared


@dataclass(frozen=True)
class Running:
    """url: without a path. port: of the loopback."""

    service: Service
    url: str
    port: int

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE, **options)


@contextmanager
def serving(model: mp.Model, **settings: Any) -> Iterator[Running]:
    """Serve a model until the end of the block, and check that no lane is left then."""
    settings = {"alias": "tiny", "allowed_hosts": ("127.0.0.1", "localhost"), "deadline": 5.0, **settings}
    service = Service(model, Settings(**settings))
    started = threading.Event()
    server = make_server(service, ready=started.set)
    listener = listen_tcp("127.0.0.1", 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert started.wait(PATIENCE)
        yield Running(service, f"http://127.0.0.1:{port}", port)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert service.queue.open == 0
    assert model.manager.lanes == ()
