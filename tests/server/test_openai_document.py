"""Answers and the events of streams have the form that OpenAI publishes, and no fields besides but those named here.

The form is that of OpenAI's OpenAPI document (tests/openai_document), and that of the types of the `openai` package.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from jsonschema import Draft202012Validator
from openai.pagination import SyncPage
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from scripted import call_tokens, scripted
from serving import CHAT, Running, serving

import mistral_portable as mp

SCHEMAS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "openai_document" / "schemas.json").read_text())
QUESTION = CHAT[0]["content"]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
CALLS = '[{"name": "weather", "arguments": {"city": "Köln"}}, {"name": "weather", "arguments": {}}]'
USAGE = {"stream": True, "stream_options": {"include_usage": True}}

CHATS: list[dict[str, Any]] = [
    {},
    {"max_tokens": 2, "n": 2},
    {"logprobs": True, "top_logprobs": 2, "stop": "ball"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    {"tools": [TOOL]},
]
TEXTS: list[dict[str, Any]] = [{}, {"prompt": ["a", "b"], "n": 2}, {"logprobs": 2}]
RESPONSES: list[dict[str, Any]] = [
    {},
    {"max_output_tokens": 2, "instructions": "Be brief.", "metadata": {"a": "b"}, "user": "u"},
    {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}},
    {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 9},
    {"tools": [{"type": "function", "name": "weather"}], "parallel_tool_calls": True, "tool_choice": "auto"},
]
# Fields that OpenAI does not have: llama-server's, Mistral's and vLLM's, which clients of these read.
EXTRA = {
    "timings": "/v1/chat/completions and /v1/completions, as llama-server has it",
    "max_model_len": "a model, as vLLM has it",
    "max_context_length": "a model, as Mistral has it",
    "capabilities": "a model, as Mistral has it",
    "type": "a model, as Mistral has it",
    "id": "embeddings, as Mistral has it",
    "name": "the end of a call's arguments: the document has it, the package has not",
    "store": "a response, as OpenAI's own have it",
    "completion_tokens": "usage of embeddings, as Mistral has it",
}


@pytest.fixture(scope="module")
def model() -> Iterator[mp.Model]:
    with mp.load("tiny", backend="numba", max_lanes=4, embeddings=True) as model:
        yield model


@pytest.fixture(scope="module")
def server(model: mp.Model) -> Iterator[Running]:
    with serving(model, embeddings="last") as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.client() as http:
        yield http


def check(value: Any, schema: str, kind: Any) -> None:
    """Validate a value by the document and by the package's types; fail for fields that neither has."""
    validator = Draft202012Validator({"$ref": f"#/components/schemas/{schema}", "components": {"schemas": SCHEMAS}})
    validator.validate(value)
    parsed = TypeAdapter(kind).validate_python(value)
    assert set(extra_fields(parsed)) <= set(EXTRA)


def extra_fields(value: Any) -> Iterator[str]:
    """The names of fields, at any depth, that the type of their object has not."""
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in value.model_fields_set - set(value.model_extra or ()):
            yield from extra_fields(getattr(value, name))
    elif isinstance(value, list):
        for one in value:
            yield from extra_fields(one)


def events(answer: httpx.Response) -> list[Any]:
    """The data of a stream's events; [DONE] ends those of chats and texts."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(one) for one in data if one != "[DONE]"]


def asked(http: httpx.Client, model: mp.Model, path: str, body: dict[str, Any]) -> httpx.Response:
    """The response to a request; one with tools is answered by calls."""
    if "tools" in body:
        with scripted(model, call_tokens(model, CALLS)):
            return http.post(path, json=body).raise_for_status()
    return http.post(path, json=body).raise_for_status()


@pytest.mark.parametrize("body", CHATS, ids=lambda body: ",".join(body))
def test_chats(http: httpx.Client, model: mp.Model, body: dict[str, Any]) -> None:
    body = {"model": "any", "messages": CHAT, "temperature": 0, **body}
    check(asked(http, model, "/v1/chat/completions", body).json(), "CreateChatCompletionResponse", ChatCompletion)
    chunks = events(asked(http, model, "/v1/chat/completions", body | USAGE))
    assert len(chunks) > 2
    for chunk in chunks:
        check(chunk, "CreateChatCompletionStreamResponse", ChatCompletionChunk)
    assert ("tools" in body) == ("tool_calls" in json.dumps(chunks))


@pytest.mark.parametrize("body", TEXTS, ids=lambda body: ",".join(body))
def test_texts(http: httpx.Client, model: mp.Model, body: dict[str, Any]) -> None:
    body = {"model": "any", "prompt": "Once", "max_tokens": 4, **body}
    check(asked(http, model, "/v1/completions", body).json(), "CreateCompletionResponse", Completion)
    for chunk in events(asked(http, model, "/v1/completions", body | USAGE)):
        for choice in chunk["choices"]:
            # The document has no schema of its own for chunks; OpenAI's have null here, too, but the last one.
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        check(chunk, "CreateCompletionResponse", Completion)


@pytest.mark.parametrize("body", RESPONSES, ids=lambda body: ",".join(body))
def test_responses(http: httpx.Client, model: mp.Model, body: dict[str, Any]) -> None:
    body = {"model": "any", "input": QUESTION, "temperature": 0, **body}
    check(asked(http, model, "/v1/responses", body).json(), "Response", Response)
    made = events(asked(http, model, "/v1/responses", body | {"stream": True}))
    for event in made:
        check(event, event_schema(event["type"]), event_type(event["type"]))
    assert ("tools" in body) == any("function_call" in event["type"] for event in made)


def event_schema(kind: str) -> str:
    """The name of the schema of an event in the document."""
    names: list[str] = [one["$ref"].rpartition("/")[2] for one in SCHEMAS["ResponseStreamEvent"]["anyOf"]]
    [found] = [name for name in names if SCHEMAS[name]["properties"]["type"]["enum"] == [kind]]
    return found


def event_type(kind: str) -> Any:
    """The class of an event in the package."""
    union, *_ = get_args(ResponseStreamEvent)
    [found] = [one for one in get_args(union) if get_args(one.model_fields["type"].annotation) == (kind,)]
    return found


def test_embeddings(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"model": "any", "input": ["a", "b"]}).json()
    check(answer, "CreateEmbeddingResponse", CreateEmbeddingResponse)


def test_models(http: httpx.Client) -> None:
    check(http.get("/v1/models").json(), "ListModelsResponse", SyncPage[Model])
    check(http.get("/v1/models/tiny").json(), "Model", Model)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", {}), ("/v1/responses", {"input": 5}), ("/v1/embeddings", {}), ("/v1/nothing", {})],
)
def test_errors(http: httpx.Client, path: str, body: Any) -> None:
    """All but the code, which is the status, as llama-server and vLLM have it; OpenAI's is a word or null."""
    error = http.post(path, json=body).json()["error"]
    assert isinstance(error["code"], int)
    check({"error": error | {"code": None}}, "ErrorResponse", dict[str, Any])
