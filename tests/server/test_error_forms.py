"""Errors that no endpoint answers are in the form of the API that was asked: those of guards, paths and methods."""

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
from serving import CHAT, PATIENCE, Running, serving

import mistral_portable as mp

KEY = {"X-Api-Key": "first"}
FORMS = {
    "/v1/messages": "anthropic",
    "/v1/messages/count_tokens": "anthropic",
    "/v1/messages/batches": "anthropic",
    "/api/chat": "ollama",
    "/api/nothing": "ollama",
    "/v1/chat/completions": "openai",
    "/v1/messagesx": "openai",
    "/v1/models": "openai",
    "/nothing": "openai",
}


@pytest.fixture(scope="module")
def guarded(model: mp.Model) -> Iterator[Running]:
    with serving(model, keys=("first",), max_body=2000) as running:
        yield running


@pytest.fixture(scope="module")
def http(guarded: Running) -> Iterator[httpx.Client]:
    with guarded.client() as http:
        yield http


def check(answer: httpx.Response, form: str, status: int, kind: str) -> None:
    body: Any = answer.json()
    assert answer.status_code == status
    match form:
        case "anthropic":
            assert (body["type"], body["error"]["type"]) == ("error", kind)
            message = body["error"]["message"]
        case "ollama":
            message = body["error"]
        case _:
            assert body["error"]["code"] == status
            message = body["error"]["message"]
    assert isinstance(message, str)
    assert message
    assert "\n" not in message


@pytest.mark.parametrize("path", FORMS)
def test_guards(http: httpx.Client, path: str) -> None:
    check(http.post(path), FORMS[path], 401, "authentication_error")
    check(http.post(path, headers={"Host": "evil.example"}), FORMS[path], 403, "permission_error")
    check(http.post(path, headers={**KEY, "Origin": "http://evil.example"}), FORMS[path], 403, "permission_error")


@pytest.mark.parametrize("path", ["/v1/messages/batches", "/api/nothing", "/nothing"])
def test_a_path_that_is_none(http: httpx.Client, path: str) -> None:
    check(http.get(path, headers=KEY), FORMS[path], 404, "not_found_error")


@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat", "/v1/chat/completions"])
def test_a_wrong_method_and_a_large_body(http: httpx.Client, path: str) -> None:
    check(http.delete(path, headers=KEY), FORMS[path], 405, "invalid_request_error")
    check(http.post(path, headers=KEY, content=b" " * 3000), FORMS[path], 413, "request_too_large")


def test_clients_know_a_wrong_key(guarded: Running) -> None:
    ask: Any = {"model": "any", "messages": CHAT}
    with (
        anthropic.Anthropic(base_url=guarded.url, api_key="no", timeout=PATIENCE, max_retries=0) as one,
        pytest.raises(anthropic.AuthenticationError, match="no valid key"),
    ):
        one.messages.create(**ask, max_tokens=1)
    with (
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="no", timeout=PATIENCE, max_retries=0) as other,
        pytest.raises(openai.AuthenticationError, match="no valid key"),
    ):
        other.chat.completions.create(**ask)
    third = ollama.Client(host=guarded.url, headers={"Authorization": "Bearer no"})
    with pytest.raises(ollama.ResponseError, match=r"^no valid key") as caught:
        third.chat(**ask)
    assert caught.value.status_code == 401
