"""Fuzzed bodies for every POST endpoint: each is answered, or refused in one line that says where and what was wrong.

CI sends 50 to each endpoint; `HYPOTHESIS_PROFILE=thorough` sends 1,000 to each.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server.complaints import Complaints, complaints
from server.drawn_bodies import GOOD, Drawn, bodies
from serving import Running, serving, wait_until

import mistral_portable as mp

__all__ = ["complaints"]

# Names of places in errors that are not made by pydantic: a rule, say, is a schema, in whichever field it came.
PLACES = re.compile(
    r"^(chat template v3: )?(message|tool|prompt) \d|\bprompt\b|\bconversation\b|token id|line \d+ column \d+"
    r"|^repetition_penalty=|^suffix: |^schema: |function name",
    re.IGNORECASE,
)
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Tom has a red ball."}], "temperature": 0}


@pytest.fixture(scope="module")
def server(complaints: Complaints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose answers and prompts are short, so that many fit into a second."""
    folder: Path = tmp_path_factory.mktemp("sessions")
    with mp.load("tiny", backend="numba", max_lanes=4, max_context=512, embeddings=True) as model:
        options: dict[str, Any] = {"max_tokens": 4, "max_queue": 8, "embeddings": "last", "sessions_dir": folder}
        with serving(model, **options) as running:
            yield running


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.client() as http:
        http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 2})  # so that there is something to save
        http.post("/v1/chat/completions", json=QUESTION)
        yield http


def test_every_endpoint_is_fuzzed(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    posts = {
        path.format(name="fuzzed") for path, operations in paths.items() if "requestBody" in operations.get("post", {})
    }
    assert {path.format(name="fuzzed") for path in posts} == set(GOOD)


@pytest.mark.parametrize("path", GOOD)
def test_good_bodies_are_answered(http: httpx.Client, path: str) -> None:
    for body in GOOD[path]:
        answer = http.post(path, json=body)
        assert answer.status_code == (400 if path == "/v1/fim/completions" else 200), answer.text


@pytest.mark.parametrize("path", GOOD)
@given(data=st.data())
def test_any_body_is_answered_or_refused(
    http: httpx.Client, server: Running, complaints: Complaints, path: str, data: st.DataObject
) -> None:
    drawn = data.draw(bodies(path))
    answer = http.post(path, content=drawn.data)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        check_refusal(answer, drawn)
    assert '"server_error"' not in answer.text  # the last event of a stream that has failed
    assert complaints.found == []
    wait_until(lambda: server.service.queue.open == 0 and server.service.model.manager.lanes == ())


def test_it_answers_as_before(http: httpx.Client, server: Running) -> None:
    answer = http.post("/v1/chat/completions", json=QUESTION).json()
    alone = server.service.model.chat(QUESTION["messages"], temperature=0, max_tokens=4)
    assert answer["choices"][0]["message"]["content"] == alone.text


def check_refusal(answer: httpx.Response, drawn: Drawn) -> None:
    """One line, that names the place of the wrong value: a field, the number of an item, or a place in the text."""
    error = answer.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert 0 < len(message) < 2000
    assert len(message.splitlines()) == 1
    if drawn.place is not None and not PLACES.search(message):
        assert any(isinstance(step, str) and step in message for step in drawn.place), message
