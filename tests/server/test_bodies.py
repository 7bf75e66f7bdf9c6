"""Bodies that are no requests, or too long. Those that are nearly requests: test_fuzzed_bodies.py."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import CHAT, Running, serving

import mistral_portable as mp


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.client() as http:
        yield http


def test_null_is_absent_and_unknown_fields_are_ignored(http: httpx.Client) -> None:
    body: dict[str, Any] = {
        "messages": CHAT,
        "temperature": None,
        "n": None,
        "stop": None,
        "tools": None,
        "max_tokens": 2,
        "new": {},
    }
    assert http.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b'{"messages": "\\ud800"}', b"[" * 10**5], ids=repr
)
def test_what_is_no_request(http: httpx.Client, data: bytes) -> None:
    answer = http.post("/v1/chat/completions", content=data)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_body_is_bounded(model: mp.Model, in_pieces: bool) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    with serving(model, max_body=len(body)) as running, running.client() as http:
        assert http.post("/v1/completions", content=body).status_code == 200
        longer = body + b" "
        answer = http.post("/v1/completions", content=iter([longer[:9], longer[9:]]) if in_pieces else longer)
    assert answer.status_code == 413
    assert f"more than {len(body)} bytes" in answer.json()["error"]["message"]
