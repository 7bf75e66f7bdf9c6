"""Life of a server: its socket, its run, and its end on SIGTERM."""

import asyncio
import math
import os
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import uvicorn

from mistral_portable.errors import InputError
from mistral_portable.server.app import create_app
from mistral_portable.server.protocol import HTTPProtocol
from mistral_portable.server.service import Service

__all__ = ["listen_tcp", "listen_unix", "make_server", "serve"]

_BACKLOG = 2048  # connections that wait to be accepted
_IDLE = 75  # seconds after which a connection without a request is closed; most clients close theirs earlier
_LATE = 5  # seconds beyond the deadline, for the last words to those whose answers are cut off


def listen_tcp(host: str, port: int) -> socket.socket:
    """A socket that is bound to a host and a port; port 0: any free one. Raises InputError if that cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # With the protocol's name, as asyncio sets TCP_NODELAY only then. Without it, the end of a response waits until
        # the client has acknowledged the beginning: 40 ms.
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise InputError(f"--host {host}: no address of this machine: {error.strerror}") from error
    try:
        if os.name == "posix":  # on Windows this would let two servers share a port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Finds clients that are gone without a word, in two hours by Linux's settings.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise InputError(f"--host {host} --port {port}: {error.strerror}: choose another port or host") from error
    return found


def listen_unix(path: Path) -> socket.socket:
    """A unix socket that the same user alone may connect to. A socket that nobody listens to is replaced.

    Raises InputError if the path is taken or cannot be written.
    """
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode) or found.connect_ex(str(path)) == 0:
                raise InputError(f"--uds {path}: is taken: remove it or choose another path")
            path.unlink()
        before = os.umask(0o177)
        try:
            found.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        found.close()
        raise InputError(f"--uds {path}: {error.strerror or error}: choose another path") from error
    except InputError:
        found.close()
        raise
    return found


def make_server(service: Service, *, ready: Callable[[], object] = lambda: None) -> uvicorn.Server:
    """uvicorn's server around a service. ready: called when connections are accepted.

    `run(sockets=[listener])` runs it until `should_exit` is set; then running answers have `settings.deadline` seconds.
    """
    config = uvicorn.Config(
        create_app(service),
        http=HTTPProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=math.ceil(service.settings.deadline) + _LATE,
    )
    return _Server(config, service, ready)


def serve(service: Service, listener: socket.socket, *, ready: Callable[[], object]) -> None:
    """Answer requests until SIGTERM or Ctrl-C; call it in the main thread. ready: as `make_server` takes it.

    The socket is closed at the end. Raises KeyboardInterrupt after Ctrl-C.
    """
    server = make_server(service, ready=ready)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn handles SIGTERM while it runs, and repeats it afterwards for whoever handled it before. By default that
    # would kill the process instead of ending it with status 0.
    before = signal.signal(signal.SIGTERM, stop)
    try:
        server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
        listener.close()


class _Server(uvicorn.Server):
    """uvicorn's server, which tells when it accepts connections, and ends answers at the deadline."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._service = service
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(self._service.settings.deadline, self._service.end)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()
