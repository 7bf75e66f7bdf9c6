"""Adapters of a served model: asked for by their names, beside the model itself."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from adapter_files import peft_adapter
from serving import CHAT, Running, serving

import mistral_portable as mp
from mistral_portable.errors import InputError
from mistral_portable.server import Service, Settings

NAMES = ("model", "sql", "poems")
PROMPT = [{"role": "user", "content": "Hello"}]
BODY: dict[str, Any] = {"max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of two adapters, the second with half its weight."""
    folder = tmp_path_factory.mktemp("adapters")
    paths = {name: peft_adapter(folder / name, seed=seed, factor=2) for seed, name in enumerate(NAMES[1:])}
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


def test_each_has_a_digest_of_its_own(running: Running, tmp_path: Path) -> None:
    model = running.service.model
    with running.client() as client:
        cards = [client.get(path).json()["models"] for path in ("/api/tags", "/api/ps")]
    digests = [[card["digest"] for card in listed] for listed in cards]
    assert digests[0] == digests[1] == [model.digest({}), model.digest("sql"), model.digest({"poems": 0.5})]
    assert len({*digests[0], model.digest("poems")}) == 4
    assert {len(digest) for digest in digests[0]} == {32}
    renamed = {"a": peft_adapter(tmp_path / "a", seed=0, factor=2)}
    with mp.load("tiny", backend="reference", adapters=renamed, adapter="a") as other:
        assert other.digest() == model.digest("sql")  # the same file under another name
        assert other.digest({}) == model.digest({})


def test_sessions_are_of_the_adapter_that_is_named(running: Running, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"alias": "model", "adapters": {"sql": 1.0}, "sessions_dir": tmp_path}
    with serving(running.service.model, **settings) as found, found.client() as client:
        text = {"prompt": "A text that one adapter reads."}
        read = client.post("/v1/completions", json={**text, **BODY, "model": "sql"}).json()["usage"]["prompt_tokens"]
        assert client.post("/sessions/a/save", json={**text, "model": "sql"}).json()["tokens"] == read
        by_base = client.post(
            "/sessions/a/save", json=text
        ).json()  # no more than its first token, which all texts have
        assert by_base.get("tokens", 0) <= 1


def test_names_that_cannot_be_served(running: Running) -> None:
    model = running.service.model
    with pytest.raises(InputError, match="'sql' is the name of the model and of an adapter"):
        Service(model, Settings(alias="sql", adapters={"sql": 1.0}))
    with pytest.raises(InputError, match="adapter 'other' is not loaded"):
        Service(model, Settings(alias="model", adapters={"other": 1.0}))


def test_a_name_is_first_taken_as_it_is(tmp_path: Path) -> None:
    """Clients of Ollama's API add ":latest" to names."""
    names = ("x:latest", "x", "y")
    paths = {name: peft_adapter(tmp_path / str(seed), seed=seed) for seed, name in enumerate(names)}
    with mp.load("tiny", backend="reference", adapters=paths, adapter="y") as model:
        service = Service(model, Settings(alias="model", adapters=dict.fromkeys(names, 1.0)))
        asked = {"x:latest": "x:latest", "x": "x", "y:latest": "y", "z": "model", "": "model"}
        assert {name: service.name_of(name) for name in asked} == asked
        assert service.adapter("model") == {}  # not the one that calls have by default


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
