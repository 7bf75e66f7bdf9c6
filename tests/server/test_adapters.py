"""Adapters of a served model: asked for by their names, beside the model itself."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from adapter_files import peft_adapter
from serving import CHAT, Running, serving

import mistral_portable as mp

NAMES = ("model", "sql", "poems")
PROMPT = [{"role": "user", "content": "Hello"}]
BODY: dict[str, Any] = {"max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of two adapters, the second with half its weight."""
    folder = tmp_path_factory.mktemp("adapters")
    paths = {name: peft_adapter(folder / name, seed=seed) for seed, name in enumerate(NAMES[1:])}
    with (
        mp.load("tiny", backend="numba", adapters=paths, embeddings=True) as model,
        serving(model, alias="model", adapters={"sql": 1.0, "poems": 0.5}, embeddings="last") as found,
    ):
        yield found


def expected(running: Running, name: str) -> str:
    chosen = {"model": {}, "sql": {"sql": 1.0}, "poems": {"poems": 0.5}}[name]
    return running.service.model.chat(CHAT, adapter=chosen, **BODY).text


def test_requests_get_the_adapter_that_they_name(running: Running) -> None:
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")

    def ask(name: str) -> tuple[str, str | None]:
        answer = client.chat.completions.create(model=name, messages=CHAT, **BODY)  # type: ignore[arg-type]
        return answer.model, answer.choices[0].message.content

    asked = [*NAMES, "gpt-4o"] * 3
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(ask, asked))
    for name, found in zip(asked, answers, strict=True):
        own = name if name in NAMES else "model"
        assert found == (own, expected(running, own))
    assert len({expected(running, name) for name in NAMES}) == 3
    assert [card.id for card in client.models.list()] == list(NAMES)
    assert client.models.retrieve("sql").id == "sql"


def test_streams_and_other_apis_know_the_names(running: Running) -> None:
    with running.client() as client:
        for path, body, text in (
            ("/v1/messages", {"messages": CHAT, **BODY}, lambda found: found["content"][0]["text"]),
            ("/v1/responses", {"input": CHAT, "max_output_tokens": 8, "temperature": 0}, _output),
            (
                "/api/chat",
                {"messages": CHAT, "stream": False, "options": _OLLAMA},
                lambda found: found["message"]["content"],
            ),
        ):
            for name in NAMES:
                found = client.post(path, json={**body, "model": name}).json()
                assert found["model"] == name, path
                assert text(found) == expected(running, name), path
        found = client.post("/api/chat", json={"model": "sql:latest", "messages": CHAT, "stream": False}).json()
        assert found["model"] == "sql"
        assert [card["name"] for card in client.get("/api/tags").json()["models"]] == list(NAMES)
        listed = client.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).json()
        assert [card["id"] for card in listed["data"]] == list(NAMES)
        body = {"model": "poems", "messages": CHAT, "stream": True, **BODY}
        events = client.post("/v1/chat/completions", json=body).text.split("\n\n")
        names = [json.loads(event.removeprefix("data: "))["model"] for event in events if '"choices"' in event]
        assert names == ["poems"] * len(names) != []


def test_embeddings_are_made_with_the_adapter(running: Running) -> None:
    with running.client() as client:
        vectors = [
            client.post("/v1/embeddings", json={"model": name, "input": "Hello"}).json()["data"][0]["embedding"]
            for name in NAMES
        ]
    assert vectors[0] != vectors[1] != vectors[2] != vectors[0]


_OLLAMA = {"num_predict": 8, "temperature": 0}


def _output(found: dict[str, Any]) -> str:
    text: str = found["output"][0]["content"][0]["text"]
    return text
