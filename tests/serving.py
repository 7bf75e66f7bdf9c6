"""A server in this process, on a free port of the loopback, for tests that need real connections."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
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

    def connect(self, *, receive: int | None = None) -> socket.socket:
        """A connection. receive: bytes that it holds for a reader."""
        found = socket.socket()
        if receive is not None:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        found.settimeout(PATIENCE)
        found.connect(("127.0.0.1", self.port))
        return found

    def ask(self, body: dict[str, Any], **options: Any) -> socket.socket:
        """Ask for the continuation of a text over a connection of its own, and do not wait for the answer."""
        found, data = self.connect(**options), json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
        found.sendall(head.encode() + data)
        return found

    def metric(self, name: str) -> float:
        """The value of a metric, with its labels: 'answers_total{finish_reason="stop"}'; 0 if it is not there yet."""
        found = [line.split()[-1] for line in self.service.metrics.text().decode().splitlines() if f"_{name} " in line]
        return float(found[0]) if found else 0.0

    @property
    def answers(self) -> float:
        """The number of complete answers so far."""
        return sum(self.metric(f'answers_total{{finish_reason="{reason}"}}') for reason in ("stop", "length"))


def wait_until(holds: Callable[[], bool]) -> None:
    """Return when something holds; fail if it does not for long."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


@contextmanager
def serving(model: mp.Model, *, send: int | None = None, **settings: Any) -> Iterator[Running]:
    """Serve a model until the end of the block, and check that no lane is left then.

    send: bytes that a connection holds for a client that does not read.
    """
    settings = {"alias": "tiny", "allowed_hosts": ("127.0.0.1", "localhost"), "deadline": 5.0, **settings}
    service = Service(model, Settings(**settings))
    started = threading.Event()
    server = make_server(service, ready=started.set)
    listener = listen_tcp("127.0.0.1", 0)
    if send is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send)
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
    wait_until(lambda: model.manager.lanes == ())
