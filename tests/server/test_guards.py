"""Who is let in: names of the server, keys, and web pages of others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import CHAT, Running, serving

import mistral_portable as mp
from mistral_portable.errors import InputError
from mistral_portable.server.keys import KEY_VARIABLE, read_keys

PAGE = "https://app.example"
PUBLIC = ["/health", "/ready"]
GUARDED = ["/v1/models", "/metrics", "/openapi.json", "/sessions", "/nothing"]


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.client() as http:
        yield http


@pytest.fixture(scope="module")
def guarded(model: mp.Model) -> Iterator[httpx.Client]:
    """A server with two keys and an allowed page."""
    with serving(model, keys=("first", "second"), cors_origins=(PAGE,)) as running, running.client() as http:
        yield http


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8080"])
def test_own_names(http: httpx.Client, host: str) -> None:
    assert http.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "127.0.0.1@evil.example", "[::1", "10.0.0.7", "localhost@x"]
)
def test_other_names_are_refused(http: httpx.Client, host: str) -> None:
    answer = http.get("/v1/models", headers={"Host": host})
    assert answer.status_code == 403
    assert "--allowed-host" in answer.json()["error"]["message"]


@settings(max_examples=25)
@given(host=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30))
def test_drawn_names_are_refused(http: httpx.Client, host: str) -> None:
    assert http.get("/health", headers={"Host": host}).status_code in (400, 403)


@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        (("*",), "any.example", 200),
        ((), "any.example", 200),
        (("my.example",), "My.Example:80", 200),
        (("my.example",), "localhost", 403),
        (("0.0.0.0",), "10.0.0.7:8080", 200),
        (("0.0.0.0",), "[fe80::1]:8080", 200),
        (("0.0.0.0",), "any.example", 403),
        (("[::1]",), "[::1]:8080", 200),
    ],
)
def test_allowed_names(model: mp.Model, allowed: tuple[str, ...], host: str, status: int) -> None:
    with serving(model, allowed_hosts=allowed) as running, running.client() as http:
        assert http.get("/health", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer firs"},
        {"Authorization": "Bearer first second"},
        {"Authorization": "Basic first"},
        {"Authorization": "first"},
        {"X-Api-Key": "FIRST"},
        {"X-Api-Key": ""},
        {"X-Api-Key": b"\xe9"},
    ],
    ids=str,
)
def test_without_a_key(guarded: httpx.Client, path: str, headers: Any) -> None:
    answer = guarded.get(path, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "first" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first"},
        {"Authorization": "bearer second"},
        {"X-Api-Key": "second"},
        {"Authorization": "Bearer dummy", "X-Api-Key": "first"},
    ],
    ids=str,
)
def test_with_a_key(guarded: httpx.Client, headers: dict[str, str]) -> None:
    assert guarded.get("/v1/models", headers=headers).status_code == 200
    body = {"messages": CHAT, "max_tokens": 1}
    assert guarded.post("/v1/chat/completions", headers=headers, json=body).status_code == 200


@pytest.mark.parametrize("path", PUBLIC)
def test_health_needs_no_key(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path).status_code == 200


def test_a_page_of_another_server_may_not_write(http: httpx.Client) -> None:
    """A form's POST needs no consent of the server."""
    headers = {"Origin": PAGE, "Content-Type": "text/plain"}
    answer = http.post("/v1/completions", headers=headers, content=b'{"prompt": "a", "max_tokens": 1}')
    assert answer.status_code == 403
    assert "--cors-origin" in answer.json()["error"]["message"]
    reading = http.get("/v1/models", headers=headers)
    assert "access-control-allow-origin" not in reading.headers


def test_a_page_of_this_server_may(http: httpx.Client) -> None:
    headers = {"Origin": str(http.base_url)}
    assert http.post("/v1/completions", headers=headers, json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_an_allowed_page_may(guarded: httpx.Client) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    consent = guarded.options("/v1/completions", headers=asked)
    assert consent.status_code == 200
    assert consent.headers["access-control-allow-origin"] == PAGE
    headers = {"Origin": PAGE, "X-Api-Key": "first"}
    answer = guarded.post("/v1/completions", headers=headers, json={"prompt": "a", "max_tokens": 1})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    other = guarded.post("/v1/completions", headers=headers | {"Origin": "https://evil.example"}, json={})
    assert other.status_code == 403
    assert "access-control-allow-origin" not in other.headers


def test_no_header_tells_what_runs_here(http: httpx.Client) -> None:
    answer = http.get("/health")
    assert set(answer.headers) == {"content-length", "content-type", "date", "x-request-id"}


def test_keys_come_from_options_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("b\n\n c \n")
    assert read_keys(["a"], file, {KEY_VARIABLE: "d"}) == ("a", "b", "c", "d")
    assert read_keys([], None, {}) == ()


@pytest.mark.parametrize("key", ["", "a b", "schlüssel", "a\nb", "a\x7f"])
def test_a_key_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(InputError, match="API key 1 of 1: must be printable"):
        read_keys([key], None, {})
    with pytest.raises(InputError, match="API key 1 of 1: must be printable"):
        read_keys([], None, {KEY_VARIABLE: key})


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff"])
def test_a_file_without_keys_opens_no_server(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"--api-key-file .*keys: (holds no key|cannot be read)"):
        read_keys(["other"], file, {})
    with pytest.raises(InputError, match="cannot be read"):
        read_keys([], tmp_path / "none", {})
