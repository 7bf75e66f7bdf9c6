"""Bodies of all APIs but the first, near to requests and far from them: no server error, and no lane is left."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from serving import CHAT, Running

from mistral_portable.anthropic.requests import CountRequest, MessagesRequest
from mistral_portable.ollama.requests import ChatRequest, EmbedRequest, GenerateRequest
from mistral_portable.openai.embeddings import EmbeddingRequest
from mistral_portable.openai.fim import FimRequest
from mistral_portable.openai.responses import ResponseRequest

BODIES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/v1/messages": (MessagesRequest, {"messages": CHAT, "max_tokens": 2}),
    "/v1/messages/count_tokens": (CountRequest, {"messages": CHAT}),
    "/v1/responses": (ResponseRequest, {"input": "Hello", "max_output_tokens": 2}),
    "/v1/fim/completions": (FimRequest, {"prompt": "Hello", "max_tokens": 2}),
    "/v1/embeddings": (EmbeddingRequest, {"input": "Hello"}),
    "/api/chat": (ChatRequest, {"model": "m", "messages": CHAT, "options": {"num_predict": 2}}),
    "/api/generate": (GenerateRequest, {"model": "m", "prompt": "Hello", "options": {"num_predict": 2}}),
    "/api/embed": (EmbedRequest, {"model": "m", "input": "Hello"}),
}
WORDS = ["type", "text", "role", "user", "assistant", "tool", "content", "name", "function", "input", "arguments"]
WORDS += [
    "message",
    "tool_use",
    "tool_result",
    "tool_use_id",
    "call_id",
    "output",
    "stop",
    "seed",
    "json_schema",
    "format",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.just(10**30) | st.text(max_size=4) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.client() as http:
        yield http


@pytest.mark.parametrize("path", BODIES)
@given(data=st.data())
def test_any_body_is_answered_or_refused(http: httpx.Client, path: str, data: st.DataObject) -> None:
    kind, good = BODIES[path]
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(kind.model_fields)), JSON, max_size=2))
    changed.pop("max_tokens", None)  # an answer without a limit takes long
    changed.pop("max_output_tokens", None)
    changed.pop("options", None)
    answer = http.post(path, json={**good, **changed})
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        message = answer.json()["error"]
        message = message if isinstance(message, str) else message["message"]
        assert message
        assert "\n" not in message


def test_good_bodies_are_answered(http: httpx.Client) -> None:
    for path, (_, good) in BODIES.items():
        expected = 400 if path in ("/v1/fim/completions", "/v1/embeddings", "/api/embed") else 200
        assert http.post(path, json={**good, "stream": False}).status_code == expected


def test_they_are_in_the_openapi_document(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert set(BODIES) <= set(paths)
    assert {"/api/tags", "/api/version", "/api/show", "/api/ps", "/api/embeddings"} <= set(paths)
