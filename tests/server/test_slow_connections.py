"""Connections that are slow, silent, too large or no HTTP: each has its end, and nobody else notices."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server.complaints import Complaints, complaints
from serving import Running, serving, wait_until

import mistral_portable as mp
from mistral_portable.server import bodies, events, protocol

__all__ = ["complaints"]

BODY = json.dumps({"prompt": "Once", "max_tokens": 1}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture
def server(model: mp.Model) -> Iterator[Running]:
    with serving(model) as running:
        yield running


def response(connection: socket.socket) -> tuple[int, Any]:
    """The status and JSON of a response."""
    found = HTTPResponse(connection)
    found.begin()
    return found.status, json.loads(found.read())


def answers(server: Running) -> bool:
    with server.client() as http:
        return http.post("/v1/completions", content=BODY).status_code == 200


@pytest.mark.parametrize("sent", [b"", REQUEST[:1], HEAD, REQUEST[:-1]], ids=["nothing", "a byte", "a head", "a body"])
def test_a_request_that_does_not_come_is_given_up(
    server: Running, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(protocol, "_SECONDS", 0.2)
    monkeypatch.setattr(bodies, "_SECONDS", 0.2)
    with server.connect() as connection:
        connection.sendall(sent)
        if sent == REQUEST[:-1]:
            status, body = response(connection)
            assert (status, "send it faster" in body["error"]["message"]) == (408, True)
        else:
            assert connection.recv(1) == b""
    assert answers(server)


@pytest.mark.parametrize("slow", [HEAD, REQUEST], ids=["head", "body"])
def test_a_byte_now_and_then_is_not_enough(server: Running, monkeypatch: pytest.MonkeyPatch, slow: bytes) -> None:
    """A time that each byte starts anew would never end."""
    monkeypatch.setattr(protocol, "_SECONDS", 0.3)
    monkeypatch.setattr(bodies, "_SECONDS", 0.3)
    with server.connect() as connection:
        if slow == REQUEST:
            connection.sendall(slow[: -len(BODY)])
        connection.settimeout(0.05)
        answer = None
        for byte in b"X-Slow: " + b"x" * 10000 if slow == HEAD else BODY:
            try:
                connection.sendall(bytes([byte]))
                answer = connection.recv(12)
            except TimeoutError:
                continue
            except ConnectionError:
                answer = b""
            break
        assert answer == (b"" if slow == HEAD else b"HTTP/1.1 408")
    assert answers(server)


def test_a_request_in_pieces_is_answered(server: Running) -> None:
    with server.connect() as connection:
        for number in range(0, len(REQUEST), 7):
            connection.sendall(REQUEST[number : number + 7])
        assert response(connection)[0] == 200
        connection.sendall(REQUEST)  # and so is the next one
        assert response(connection)[0] == 200


def test_headers_are_bounded(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(HEAD + b"X-Long: " + b"x" * 2**17)
        status, body = response(connection)
        assert (status, "too large: shorten" in body["error"]["message"]) == (431, True)
        assert connection.recv(1) == b""
    assert answers(server)


def test_a_body_that_is_too_large_is_not_read_to_its_end(model: mp.Model) -> None:
    with serving(model, max_body=1000) as server, server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000000000\r\n\r\n" + b"x" * 2000)
        assert response(connection)[0] == 413
        assert answers(server)


def test_the_rest_of_a_refused_body_is_not_waited_for(model: mp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_SECONDS", 0.2)
    with serving(model, max_body=1000) as server, server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000000000\r\n\r\n" + b"x" * 2000)
        assert response(connection)[0] == 413
        connection.sendall(b"x")  # ends the time that uvicorn waits for a next request
        assert connection.recv(1) == b""


REQUESTS = st.builds(lambda cut, junk: REQUEST[:cut] + junk + REQUEST[cut:], st.integers(0, 99), st.binary())


@given(data=st.binary() | REQUESTS)
def test_what_is_no_http_is_refused(shared: Running, complaints: Complaints, data: bytes) -> None:
    with shared.connect() as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        wait_until(lambda: shared.service.queue.open == 0)
        try:
            begun = connection.recv(12)
        except ConnectionResetError:
            begun = b""
        assert begun in (b"", b"HTTP/1.1 200", b"HTTP/1.1 400", b"HTTP/1.1 403", b"HTTP/1.1 404", b"HTTP/1.1 405")
    assert complaints.found == []


@pytest.fixture(scope="module")
def shared(model: mp.Model) -> Iterator[Running]:
    with serving(model) as running:
        yield running


def test_a_chunk_that_is_none_ends_the_request(server: Running, complaints: Complaints) -> None:
    with server.connect() as connection:
        connection.sendall(HEAD + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"pro\r\nZZ\r\n')
        assert connection.recv(1) == b""
    wait_until(lambda: server.metric('requests_total{path="/v1/completions",status="499"}') == 1)
    assert complaints.found == []


def test_who_waits_for_a_lane_hears_that_the_server_lives(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_QUIET", 0.05)
    endless = {"prompt": "Once", "ignore_eos": True, "max_tokens": 30000}
    with ExitStack() as running:
        for _ in range(4):
            running.enter_context(server.ask(endless))
        wait_until(lambda: len(server.service.model.manager.lanes) == 4)
        waiting = running.enter_context(server.ask({"prompt": "Once", "max_tokens": 1, "stream": True}))
        found = HTTPResponse(waiting)
        found.begin()
        assert found.status == 200
        for _ in range(2):
            assert found.readline().startswith(b": ")
            assert found.readline() == b"\n"
