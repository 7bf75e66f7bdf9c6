"""Streams of events: kept alive while nothing is made, and ended by what went wrong."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from mistral_portable.errors import ClosedError, InputError
from mistral_portable.server import events
from mistral_portable.server.connection import ClientGone
from mistral_portable.server.errors import failure_of, openai_error
from mistral_portable.server.events import EventStream, sse


class Client:
    """Takes what a response sends."""

    def __init__(self) -> None:
        self.messages = list[Message]()
        self.came = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.messages.append(message)
        self.came.set()

    async def receive(self) -> Message:
        raise AssertionError("the connection is watched elsewhere")

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


def respond(client: Client, pieces: AsyncGenerator[bytes, None]) -> Any:
    response = EventStream(pieces, error=lambda error: sse(openai_error(failure_of(error))))
    return response({"type": "http"}, client.receive, client.send)


def test_a_comment_comes_while_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_QUIET", 0.01)

    async def run() -> None:
        client = Client()

        async def pieces() -> AsyncGenerator[bytes, None]:
            await client.came.wait()
            yield sse("first")

        await respond(client, pieces())
        head, *rest = client.messages
        assert (head["status"], dict(head["headers"])[b"cache-control"]) == (200, b"no-cache")
        assert client.body.startswith(b": ")
        assert client.body.endswith(b"\n\ndata: first\n\n")
        assert [message["more_body"] for message in rest] == [True] * (len(rest) - 1) + [False]

    asyncio.run(run())


def test_an_error_before_the_first_piece_is_raised() -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        raise InputError("no")
        yield b""

    async def run() -> None:
        client = Client()
        with pytest.raises(InputError):
            await respond(client, pieces())
        assert client.messages == []

    asyncio.run(run())


def test_an_error_amid_the_stream_is_its_last_event() -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield sse("first")
        raise ClosedError("gone")

    async def run() -> None:
        client = Client()
        await respond(client, pieces())
        first, last, rest = client.body.split(b"\n\n")
        assert (first, rest, client.messages[-1]["more_body"]) == (b"data: first", b"", False)
        assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "gone"

    asyncio.run(run())


def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_STALLED", 0.01)
    closed = asyncio.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield sse("more")
        finally:
            closed.set()

    class Stalled(Client):
        async def send(self, message: Message) -> None:
            await asyncio.Event().wait()

    async def run() -> None:
        with pytest.raises(ClientGone):
            await respond(Stalled(), pieces())
        assert closed.is_set()

    asyncio.run(run())


@given(data=st.recursive(st.text() | st.integers() | st.none(), st.lists), event=st.sampled_from([None, "ping"]))
def test_an_event_is_one_block_of_lines(data: Any, event: str | None) -> None:
    """Lines end at \\n, \\r or both; JSON escapes them."""
    text = sse([data], event).decode()
    assert text.endswith("\n\n")
    lines = text[:-2].replace("\r", "\n").split("\n")
    assert lines[:-1] == ([f"event: {event}"] if event else [])
    assert json.loads(lines[-1].removeprefix("data: ")) == [data]
