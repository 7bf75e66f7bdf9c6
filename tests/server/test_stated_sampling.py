"""A server of `--sampling model`: what a request leaves open is as the model's generation_config.json says."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from serving import CHAT, Running, serving

import mistral_portable as mp
from mistral_portable.errors import InputError
from mistral_portable.server import Service, Settings
from mistral_portable.server.service import Job

STATED = {"do_sample": True, "temperature": 0.25, "top_p": 0.5, "repetition_penalty": 1.25, "max_new_tokens": 3}
OPENAI = {"messages": CHAT}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", OPENAI),
    ("/v1/completions", {"prompt": "Once"}),
    ("/v1/responses", {"input": "Once"}),
    ("/v1/messages", {"messages": CHAT, "max_tokens": 3}),
    ("/api/chat", {"model": "m", "messages": CHAT, "stream": False}),
    ("/api/generate", {"model": "m", "prompt": "Once", "raw": True, "stream": False}),
]
OWN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("/v1/chat/completions", {**OPENAI, "temperature": 0.5, "max_completion_tokens": 2}, {"max_tokens": 2}),
    (
        "/v1/chat/completions",
        {**OPENAI, "temperature": 0.5, "max_tokens": 2, "top_k": 0},
        {"max_tokens": 2, "top_k": 0},
    ),
    ("/v1/completions", {"prompt": "Once", "temperature": 0.5, "repeat_penalty": 1}, {"repetition_penalty": 1}),
    ("/v1/responses", {"input": "Once", "temperature": 0.5, "max_output_tokens": 2}, {"max_tokens": 2}),
    ("/v1/messages", {"messages": CHAT, "temperature": 0.5, "max_tokens": 2}, {"max_tokens": 2}),
    (
        "/api/chat",
        {
            "model": "m",
            "messages": CHAT,
            "stream": False,
            "options": {"temperature": 0.5, "num_predict": 2, "top_k": 7},
        },
        {"max_tokens": 2, "top_k": 7},
    ),
    (
        "/api/generate",
        {"model": "m", "prompt": "Once", "stream": False, "options": {"temperature": 0.5, "repeat_penalty": 1.5}},
        {"repetition_penalty": 1.5, "repeat_last_n": 64},
    ),
]
"""Requests with fields of their own, and what they mean beside the temperature."""


@pytest.fixture(scope="module")
def stating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mp.Model]:
    """The embedded model, with a generation_config.json."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    mp.convert("tiny", folder, to="hf")
    (folder / "generation_config.json").write_text(json.dumps(STATED))
    with mp.load(folder, backend="numba") as model:
        yield model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[mp.SamplingParams]:
    """The parameters of the jobs that reach the model."""
    found: list[mp.SamplingParams] = []
    stream = Service.stream

    def watched(self: Service, job: Job) -> Any:
        found.append(job.params)
        return stream(self, job)

    monkeypatch.setattr(Service, "stream", watched)
    return found


@pytest.fixture(scope="module")
def running(stating: mp.Model) -> Iterator[Running]:
    with serving(stating, sampling="model") as found:
        yield found


@pytest.fixture(scope="module")
def http(running: Running) -> Iterator[httpx.Client]:
    with running.client() as http:
        yield http


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_what_is_left_open_is_stated(
    http: httpx.Client, asked: list[mp.SamplingParams], path: str, body: dict[str, Any]
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    stated = mp.SamplingParams(temperature=0.25, top_p=0.5, top_k=50, repetition_penalty=1.25, max_tokens=3)
    assert [replace(params, stop=()) for params in asked] == [stated]
    if path == "/v1/responses":
        assert (answer.json()["temperature"], answer.json()["top_p"]) == (0.25, 0.5)


@pytest.mark.parametrize(("path", "body", "means"), OWN)
def test_what_is_given_counts(
    http: httpx.Client, asked: list[mp.SamplingParams], path: str, body: dict[str, Any], means: dict[str, Any]
) -> None:
    assert http.post(path, json=body).status_code == 200
    stated = {"top_p": 0.5, "top_k": 50, "repetition_penalty": 1.25, "max_tokens": 3}
    assert asked == [mp.SamplingParams(**{**stated, "temperature": 0.5, **means})]


def test_no_limit_that_ollama_s_clients_ask_for(stating: mp.Model, asked: list[mp.SamplingParams]) -> None:
    body = {"model": "m", "messages": CHAT, "stream": False, "options": {"num_predict": -1, "temperature": 0}}
    with serving(stating, sampling="model", max_tokens=4) as found, found.client() as http:
        assert http.post("/api/chat", json=body).status_code == 200
    assert [params.max_tokens for params in asked] == [None]


def test_otherwise_each_api_says_it(stating: mp.Model, asked: list[mp.SamplingParams]) -> None:
    with serving(stating, max_tokens=2) as found, found.client() as http:
        for path, body in BODIES:
            assert http.post(path, json=body).status_code == 200
    assert [params.temperature for params in asked] == [1, 1, 1, 1, 0.8, 0.8]


def test_models_that_state_nothing_or_nonsense(model: mp.Model, stating: mp.Model) -> None:
    settings = Settings(alias="model", sampling="model")
    with pytest.raises(InputError, match=r"no generation_config.json of the model says how to draw"):
        Service(model, settings)
    good = stating.generation
    try:
        stating.generation = {**good, "temperature": "hot"}
        with pytest.raises(InputError, match="temperature='hot' must be a number"):
            Service(stating, settings)
    finally:
        stating.generation = good
