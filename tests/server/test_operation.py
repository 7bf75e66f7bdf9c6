"""Questions of operators: health, metrics, logs, the OpenAPI document; and answers where there is no endpoint."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families
from serving import CHAT, Running, serving, wait_until

import mistral_portable as mp


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.client() as http:
        yield http


def test_health(http: httpx.Client) -> None:
    for path in ("/health", "/ready"):
        answer = http.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_metrics_count(model: mp.Model) -> None:
    body = {"messages": CHAT, "temperature": 0, "cache_salt": "metrics"}
    with serving(model) as running, running.client() as http:
        used = [http.post("/v1/chat/completions", json=body).json()["usage"] for _ in range(2)]
        http.post("/v1/chat/completions", json={})
        http.get("/secret/path")
        wait_until(lambda: running.metric('requests_total{path="other",status="404"}') == 1)
        answer = http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {
        (
            sample.name.removeprefix("mistral_portable_"),
            *(sample.labels[name] for name in sorted(sample.labels)),
        ): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    asked = used[0]["prompt_tokens"]
    assert found["prompt_tokens_total",] == 2 * asked
    assert found["cached_tokens_total",] == asked - 1 == used[1]["prompt_tokens_details"]["cached_tokens"]
    assert found["answer_tokens_total",] == sum(some["completion_tokens"] for some in used)
    assert found["answers_total", "stop"] == found["first_token_seconds_count",] == 2
    assert found["requests_total", "/v1/chat/completions", "200"] == 2
    assert found["requests_total", "/v1/chat/completions", "400"] == 1
    assert (found["lanes",], found["lanes_in_use",], found["open_answers",]) == (4, 0, 0)
    assert found["cache_bytes",] > 0
    assert "secret" not in answer.text


def test_a_line_of_the_log_for_each_request(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mistral_portable.server")
    answers = [
        http.post("/v1/chat/completions", json={"messages": CHAT, "max_tokens": 3, "stream": stream})
        for stream in (False, True)
    ]
    missing = http.get("/v1/models/none")
    wait_until(lambda: len(caplog.records) == 3)
    records: list[Any] = [record.__dict__["record"] for record in caplog.records]
    for record, answer in zip(records, [*answers, missing], strict=True):
        assert record["request_id"] == answer.headers["X-Request-Id"]
        assert (record["status"], record["path"]) == (answer.status_code, answer.url.path)
        assert record["ms"] > 0
    for record in records[:2]:
        assert record["answer_tokens"] == 3
        assert record["prompt_tokens"] == answers[0].json()["usage"]["prompt_tokens"]
        assert record["ms"] >= record["first_token_ms"] > 0
    assert "ball" not in str(records)


def test_the_document_describes_requests_that_are_accepted(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    schemas = document["components"]["schemas"]
    requests: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": CHAT, "max_tokens": 1, "stop": ["a"], "logit_bias": {"5": 1}},
        "/v1/completions": {"prompt": [[1, 5]], "max_tokens": 1},
        "/tokenize": {"content": "a"},
        "/detokenize": {"tokens": [5]},
        "/apply-template": {"messages": CHAT},
    }
    for path, body in requests.items():
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        validator = Draft202012Validator({**schema, "components": {"schemas": schemas}})
        validator.validate(body)
        assert http.post(path, json=body).status_code == 200
        for name in body:
            wrong = body | {name: {"x": {}}}
            assert not validator.is_valid(wrong)
            assert http.post(path, json=wrong).status_code == 400


def test_the_document_names_all_paths(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert paths["/v1/models/{model}"]["get"]["parameters"][0]["name"] == "model"
    for path, operations in paths.items():
        for method in operations:
            answer = http.request(method, path.format(model="tiny", name="none"), content=b"{")
            assert answer.status_code in (200, 400, 404), path
            assert "no such endpoint" not in answer.text


def test_the_document_says_who_needs_a_key(http: httpx.Client, model: mp.Model) -> None:
    assert "security" not in http.get("/openapi.json").text
    with serving(model, keys=("k",)) as running, running.client(headers={"X-Api-Key": "k"}) as other:
        document = other.get("/openapi.json").json()
    assert document["security"] == [{"bearer": []}, {"header": []}]
    assert document["paths"]["/health"]["get"]["security"] == []
    assert "security" not in document["paths"]["/v1/models"]["get"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/none", 404), ("GET", "/v1/completions", 405), ("POST", "/health/", 404), ("DELETE", "/health", 405)],
)
def test_where_there_is_no_endpoint(http: httpx.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], "GET /openapi.json" in error["message"]) == (status, True)
    assert json.dumps(path)[1:-1] in error["message"]
