"""Clients that leave while they are queued, in their prompt or in decoding, and those that are slow: others are served,
and no lane is kept."""

import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from typing import Any

import pytest
from serving import CHAT, Running, serving, wait_until

import mistral_portable as mp

Leave = Callable[[socket.socket], None]
ENDLESS: dict[str, Any] = {"prompt": "Once", "ignore_eos": True, "max_tokens": 30000, "temperature": 0}
LONG: dict[str, Any] = {"prompt": [5] * 30000, "max_tokens": 1}


@pytest.fixture
def server(model: mp.Model) -> Iterator[Running]:
    with serving(model) as running:
        yield running


def wait_until_idle(server: Running) -> None:
    """Return when no request is left, neither in the server nor in the engine."""
    wait_until(lambda: server.service.queue.open == 0 and server.service.model.manager.lanes == ())


def close(connection: socket.socket) -> None:
    connection.close()


def reset(connection: socket.socket) -> None:
    """Close as a process does that dies with data unread: the server's next packet is refused."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def close_half(connection: socket.socket) -> None:
    """Say that nothing more will be sent. A client that waits for its answer does not do so."""
    connection.shutdown(socket.SHUT_WR)


LEAVING = pytest.mark.parametrize("leave", [close, reset, close_half])


def read_events(connection: socket.socket) -> list[str]:
    """The data of all events of a response, which is sent in chunks."""
    response = HTTPResponse(connection)
    response.begin()
    return [line[len("data: ") :] for line in response.read().decode().splitlines() if line.startswith("data: ")]


@LEAVING
@pytest.mark.parametrize("stream", [False, True])
def test_amid_decoding(server: Running, stream: bool, leave: Leave) -> None:
    connection = server.ask(ENDLESS | {"stream": stream})
    if stream:
        assert connection.recv(12) == b"HTTP/1.1 200"
    else:
        wait_until(lambda: len(server.service.model.manager.lanes) == 1)
    leave(connection)
    wait_until_idle(server)
    assert server.answers == 0
    status = 200 if stream else 499
    wait_until(lambda: server.metric(f'requests_total{{path="/v1/completions",status="{status}"}}') == 1)


@LEAVING
@pytest.mark.parametrize("stream", [False, True])
def test_amid_the_prompt(server: Running, stream: bool, leave: Leave) -> None:
    connection = server.ask(LONG | {"stream": stream, "cache_salt": f"{stream} {leave.__name__}"})
    wait_until(lambda: len(server.service.model.manager.lanes) == 1)
    leave(connection)
    wait_until_idle(server)
    assert server.answers == 0


@LEAVING
@pytest.mark.parametrize("stream", [False, True])
def test_in_the_queue(server: Running, stream: bool, leave: Leave) -> None:
    with ExitStack() as running:
        for _ in range(4):
            running.enter_context(server.ask(ENDLESS))
        wait_until(lambda: len(server.service.model.manager.lanes) == 4)
        queued = server.ask(ENDLESS | {"stream": stream})
        wait_until(lambda: server.service.queue.open == 5)
        leave(queued)
        wait_until(lambda: server.service.queue.open == 4)
        assert len(server.service.model.manager.lanes) == 4
    wait_until_idle(server)
    assert server.answers == 0


def test_amid_many_answers_of_one_request(server: Running) -> None:
    connection = server.ask(ENDLESS | {"n": 9, "temperature": 1, "stream": True})
    wait_until(lambda: len(server.service.model.manager.lanes) == 4)
    assert server.service.queue.open == 9
    connection.close()
    wait_until_idle(server)


def test_amid_the_body(server: Running) -> None:
    connection = server.connect()
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
    connection.close()
    wait_until(lambda: server.metric('requests_total{path="/v1/completions",status="499"}') == 1)
    assert server.service.queue.open == 0


def test_a_client_that_does_not_read_stops_nobody_and_misses_nothing(model: mp.Model) -> None:
    body = ENDLESS | {"max_tokens": 3000, "stream": True}
    alone = model.generate(body["prompt"], temperature=0, ignore_eos=True, max_tokens=3000)
    with serving(model, send=4096) as server, server.ask(body, receive=4096) as slow:
        wait_until(lambda: server.service.queue.open == 1)
        with server.client() as http:
            for _ in range(3):
                answer = http.post("/v1/chat/completions", json={"messages": CHAT, "temperature": 0}).json()
                assert answer["choices"][0]["finish_reason"] == "stop"
        assert server.service.queue.open == 1  # what is on its way holds a fraction of 3000 events
        events = read_events(slow)
    assert events[-1] == "[DONE]"
    texts = [choice["text"] for event in map(json.loads, events[:-1]) for choice in event["choices"]]
    assert "".join(texts) == alone.text


def test_connections_that_say_nothing_stop_nobody(server: Running) -> None:
    with ExitStack() as silent:
        for number in range(100):
            connection = silent.enter_context(server.connect())
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"[:number]
            )
        with server.client() as http:
            assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200
