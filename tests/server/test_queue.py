"""More requests than can run: they wait, and beyond a bound they are told when to come again."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import openai
import pytest
from serving import PATIENCE, Running, serving, wait_until

import mistral_portable as mp

ENDLESS: dict[str, Any] = {"prompt": "Once", "ignore_eos": True, "max_tokens": 30000}
TEXT = "Once upon a time"


@contextmanager
def filled(server: Running) -> Iterator[ExitStack]:
    """All four lanes are taken until the end of the block, or until the stack is closed."""
    with ExitStack() as running:
        for _ in range(4):
            running.enter_context(server.ask(ENDLESS))
        wait_until(lambda: len(server.service.model.manager.lanes) == 4)
        yield running


def test_200_at_once(server: Running, model: mp.Model) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=PATIENCE, max_retries=0) as client:

        def ask(number: int) -> str:
            options: dict[str, Any] = {"prompt": f"{TEXT} {number}", "temperature": 0, "max_tokens": 8, "model": "any"}
            if number % 2:
                return "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **options))
            return str(client.completions.create(**options).choices[0].text)

        with ThreadPoolExecutor(200) as pool:
            found = list(pool.map(ask, range(200)))
    alone = model.generate([f"{TEXT} {number}" for number in range(200)], temperature=0, max_tokens=8)
    assert found == [one.text for one in alone]


def test_200_at_once_are_answered_or_told_to_come_again(model: mp.Model) -> None:
    alone = model.generate(TEXT, temperature=0, max_tokens=8).text
    limits = httpx.Limits(max_connections=200)
    with serving(model, max_queue=20) as server, server.client(limits=limits) as http:

        def ask(number: int) -> int:
            body = {"prompt": TEXT, "temperature": 0, "max_tokens": 8, "stream": number % 2 == 1}
            answer = http.post("/v1/completions", json=body)
            if answer.status_code == 503:
                assert int(answer.headers["Retry-After"]) >= 1
            elif number % 2:
                assert answer.text.endswith("data: [DONE]\n\n")
            else:
                assert answer.json()["choices"][0]["text"] == alone
            return answer.status_code

        with ThreadPoolExecutor(200) as pool:
            found = set(pool.map(ask, range(200)))
    assert 200 in found
    assert found <= {200, 503}


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_says_when_to_come_again(model: mp.Model, stream: bool) -> None:
    with serving(model, max_queue=1) as server, server.client() as http, filled(server):
        assert http.get("/ready").status_code == 200
        with server.ask(ENDLESS):
            wait_until(lambda: server.service.queue.open == 5)
            answer = http.post("/v1/completions", json={"prompt": "a", "stream": stream})
            assert http.get("/ready").status_code == 503
        assert answer.status_code == 503
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        error = answer.json()["error"]
        assert (error["type"], "1 answers wait" in error["message"]) == ("unavailable_error", True)


def test_more_answers_than_there_will_ever_be_room_for(model: mp.Model) -> None:
    with serving(model, max_queue=2) as server, server.client() as http:
        assert http.post("/v1/completions", json={"prompt": "a", "n": 6, "max_tokens": 1}).status_code == 200
        for body in ({"prompt": "a", "n": 7}, {"prompt": ["a"] * 7}):
            answer = http.post("/v1/completions", json=body)
            assert answer.status_code == 400
            assert "7 answers in one request, the server takes at most 6" in answer.json()["error"]["message"]


def test_openai_s_client_comes_again(model: mp.Model) -> None:
    with (
        serving(model, max_queue=0) as server,
        filled(server) as running,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=PATIENCE, max_retries=50) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        create: Any = client.completions.create
        answer = pool.submit(create, model="any", prompt=TEXT, temperature=0, max_tokens=8)
        wait_until(lambda: server.metric('requests_total{path="/v1/completions",status="503"}') >= 1)
        running.close()
        assert answer.result().choices[0].text == model.generate(TEXT, temperature=0, max_tokens=8).text


def test_the_operator_s_number_of_tokens_is_the_most(model: mp.Model) -> None:
    with serving(model, max_tokens=5) as server, server.client() as http:
        for asked, made in ((None, 5), (9, 5), (3, 3)):
            body = {"prompt": "Once", "ignore_eos": True, "max_tokens": asked}
            assert http.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == made
