"""Bodies that are no requests, nearly requests, or too long: no server error, and no lane is left."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "tool"]) | JSON,
            "content": st.text(max_size=9) | JSON,
        },
        optional={"tool_calls": JSON, "tool_call_id": JSON, "name": JSON},
    ),
    max_size=4,
)
PARAMETERS = st.fixed_dictionaries(
    {"type": st.sampled_from(["object", "object", "string"])},
    optional={
        "properties": st.dictionaries(st.sampled_from("ab"), st.sampled_from([{}, {"enum": [1]}, {"not": {}}, 5])),
        "required": st.lists(st.sampled_from("ab"), unique=True),
        "additionalProperties": st.booleans(),
    },
)
FUNCTION = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "g", "a b", ""])}, optional={"parameters": PARAMETERS | JSON}
)
TOOLS = st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTION}), max_size=3)
# Values that are right, or nearly so.
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "messages": MESSAGES,
    "prompt": st.text(max_size=9) | st.lists(st.integers(-2, 99)) | st.lists(st.text(max_size=9)),
    "n": st.integers(0, 4),
    "stream": st.booleans(),
    "logprobs": st.booleans() | st.integers(0, 5),
    "top_logprobs": st.integers(-1, 21),
    "logit_bias": st.dictionaries(st.sampled_from(["5", "-1", "a", "99999999"]), st.floats(-200, 200), max_size=3),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3),
    "tool_choice": st.sampled_from(["none", "auto", "required", "any", {"type": "function", "function": {"name": "f"}}])
    | JSON,
    "parallel_tool_calls": st.booleans(),
    "seed": st.integers(-(2**70), 2**70),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "temperature": st.floats(),
    "top_p": st.floats(-1, 2),
    "top_k": st.integers(-1, 10**9),
    "min_p": st.floats(-1, 2),
    "typical_p": st.floats(-1, 2),
    "repetition_penalty": st.floats(),
    "frequency_penalty": st.floats(),
    "presence_penalty": st.floats(),
    "max_completion_tokens": st.integers(-1, 4),
    "ignore_eos": st.booleans(),
    "tools": TOOLS | JSON,
    "response_format": JSON,
    "grammar": st.text(max_size=8),
    "regex": st.text(max_size=8),
    "user": st.text(max_size=8),
    "cache_salt": st.text(max_size=8),
    "suffix": st.text(max_size=8),
    "echo": st.booleans(),
    "best_of": st.integers(0, 4),
}


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Bodies, of which most are nearly right."""
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), unique=True, max_size=5))
    body = {name: draw(FIELDS[name] if draw(st.integers(0, 3)) else JSON) for name in names}
    return {"messages": CHAT, "prompt": "a", "max_tokens": draw(st.integers(1, 4)), **body}


@given(path=st.sampled_from(["/v1/chat/completions", "/v1/completions"]), body=bodies())
def test_no_body_makes_a_server_error(http: httpx.Client, server: Running, path: str, body: dict[str, Any]) -> None:
    answer = http.post(path, content=json.dumps(body).encode())
    assert answer.status_code in (200, 400), (body, answer.text)
    assert '"type":"server_error"' not in answer.text  # amid a stream
    if answer.status_code == 400:
        error = answer.json()["error"]
        assert error["message"]
        assert "\n" not in error["message"]
    assert server.service.queue.open == 0
    assert server.service.model.manager.lanes == ()


@given(
    path=st.sampled_from(["/tokenize", "/detokenize", "/apply-template", "/v1/completions"]),
    body=JSON | st.dictionaries(st.sampled_from(["content", "messages", "tools", "tokens", "prompt"]), JSON | MESSAGES),
)
def test_no_json_makes_a_server_error(http: httpx.Client, path: str, body: Any) -> None:
    assert http.post(path, content=json.dumps(body).encode()).status_code in (200, 400)
