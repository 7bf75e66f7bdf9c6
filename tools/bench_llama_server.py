"""llama.cpp's server as a process, and a client that streams its answers. Not a command; see tools/bench_serving.py."""

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from tools.bench_play import Reply

__all__ = ["LlamaServer", "complete", "llama_server_version"]

_HOST = "127.0.0.1"
_LINE = 2**24  # bytes: the last event repeats the prompt as text
_SECONDS_TO_LOAD = 600


class LlamaServer:
    """A llama-server with its defaults for one model, from `with` on; it ends with the block."""

    def __init__(self, program: str, model: str, *, slots: int, room: int, threads: int) -> None:
        """slots: sequences that run at a time, each of up to `room` tokens.

        Raises RuntimeError, from `with` on, if it does not start.
        """
        self._port = _free_port()
        options = {
            "--model": model,
            "--host": _HOST,
            "--port": self._port,
            "--parallel": slots,
            "--ctx-size": slots * (room + 256 & -256),  # each slot has its part; a slot is never filled to its end
            "--threads": threads,
        }
        self._command = [program, *(str(word) for option in options.items() for word in option)]

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

    async def ask(self, prompt: Sequence[int], answer: int, made: Callable[[int], None]) -> Reply:
        """Continue a prompt: an `Ask` of tools/bench_play.py."""
        return await complete(self._port, prompt, answer, made)

    def _wait(self) -> None:
        """Wait until the model is loaded."""
        until = time.monotonic() + _SECONDS_TO_LOAD
        while not _healthy(self._port):
            if self._process.poll() is not None or time.monotonic() > until:
                last = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
                raise RuntimeError(f"{self._command[0]} did not start: {last}")
            time.sleep(0.1)


def llama_server_version(program: str) -> str:
    """The version that a llama-server tells, such as "7213 (b61de2b)". Raises RuntimeError if it tells none."""
    told = subprocess.run([program, "--version"], capture_output=True, text=True)
    for line in (told.stderr + told.stdout).splitlines():
        if line.startswith("version: "):
            return line.removeprefix("version: ")
    raise RuntimeError(f"{program} --version tells no version: is it a llama-server?")


async def complete(port: int, prompt: Sequence[int], answer: int, made: Callable[[int], None]) -> Reply:
    """Let the llama-server at a port of this machine continue a prompt: an `Ask` of tools/bench_play.py.

    A token that ends within a character is held back by the server: it counts when the next event comes, and the
    reply's ids end before it. Raises RuntimeError if the server refuses or ends early.
    """
    body = {
        "prompt": list(prompt),
        "n_predict": answer,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "cache_prompt": True,
    }
    reader, writer = await asyncio.open_connection(_HOST, port, limit=_LINE)
    try:
        writer.write(_post("/completion", json.dumps(body).encode()))
        tokens: list[int] = []
        async for event in _events(reader):
            count = event["tokens_predicted"]
            made(count)
            if event["stop"]:
                return Reply(tokens, event["timings"]["cache_n"])
            if len(tokens) == count - 1:
                tokens += event["tokens"]
    finally:
        writer.close()
    raise RuntimeError(f"llama-server ended a stream before its answer: {count} of {answer} tokens")


def _post(path: str, body: bytes) -> bytes:
    head = [
        f"POST {path} HTTP/1.1",
        f"Host: {_HOST}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each server-sent event."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
    if int(head[0].split()[1]) != HTTPStatus.OK:
        raise RuntimeError(f"llama-server answered {head[0]}: {(await reader.read()).decode(errors='replace')}")
    async for line in _lines(reader):
        if line.startswith(b"data: "):
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise RuntimeError(f"llama-server failed: {event['error']}")
            yield event


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


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind((_HOST, 0))
        port: int = bound.getsockname()[1]
        return port
