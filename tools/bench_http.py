"""A server as a process, and the events that it streams, for `tools/bench_serving.py`. Not a command."""

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

__all__ = ["ServerProcess", "events", "free_port"]

_HOST = "127.0.0.1"
_LINE = 2**24  # bytes: the last event of llama-server repeats the prompt as text
_SECONDS_TO_LOAD = 600


class ServerProcess:
    """A process that serves at a port of this machine, from `with` on; it ends with the block."""

    def __init__(self, command: Sequence[str], port: int) -> None:
        """Raises RuntimeError, from `with` on, if it does not answer GET /health within 10 minutes."""
        self.port = port
        self._command = command

    def __enter__(self) -> Self:
        self._folder = TemporaryDirectory()
        self._log = Path(self._folder.name, "log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def _wait(self) -> None:
        """Wait until the model is loaded."""
        until = time.monotonic() + _SECONDS_TO_LOAD
        while not _healthy(self.port):
            if self._process.poll() is not None or time.monotonic() > until:
                last = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
                raise RuntimeError(f"{self._command[0]} did not start: {last}")
            time.sleep(0.1)


def free_port() -> int:
    """A port that nobody listens to now."""
    with socket.socket() as bound:
        bound.bind((_HOST, 0))
        port: int = bound.getsockname()[1]
        return port


async def events(port: int, path: str, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Post a body to a server at a port of this machine; the JSON of each event that it answers, but for "[DONE]".

    Raises RuntimeError if it refuses or fails.
    """
    reader, writer = await asyncio.open_connection(_HOST, port, limit=_LINE)
    try:
        writer.write(_post(path, json.dumps(body).encode()))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        if int(head[0].split()[1]) != HTTPStatus.OK:
            raise RuntimeError(f"the server answered {head[0]}: {(await reader.read()).decode(errors='replace')}")
        async for line in _lines(reader):
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                event = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    raise RuntimeError(f"the server failed: {event['error']}")
                yield event
    finally:
        writer.close()


def _post(path: str, body: bytes) -> bytes:
    head = [
        f"POST {path} HTTP/1.1",
        f"Host: {_HOST}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a body in chunks (RFC 9112, 7.1)."""
    rest = b""
    while size := int(await reader.readline() or b"0", 16):
        *lines, rest = (rest + await reader.readexactly(size)).split(b"\n")
        await reader.readexactly(2)
        for line in lines:
            yield line


def _healthy(port: int) -> bool:
    with closing(HTTPConnection(_HOST, port, timeout=10)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False
