"""How much a model is to reason: the field of a chat reaches its template, which may refuse the value."""

from collections.abc import Iterator
from typing import Literal

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam
from serving import CHAT, Running, serving

import mistral_portable as mp

EFFORTS = (
    "{{ bos_token }}{% if reasoning_effort is defined and reasoning_effort not in ('none', 'high') %}"
    "{{ raise_exception('reasoning_effort ' ~ reasoning_effort ~ ' is not known') }}{% endif %}"
    "<{{ reasoning_effort }}>{% for message in messages %}{{ message.content }}|{% endfor %}"
)


@pytest.fixture(scope="module")
def thinker() -> Iterator[mp.Model]:
    with mp.load("tiny", backend="numba", chat_template=EFFORTS) as model:
        yield model


@pytest.fixture(scope="module")
def running(thinker: mp.Model) -> Iterator[Running]:
    with serving(thinker) as found:
        yield found


@pytest.fixture(scope="module")
def http(running: Running) -> Iterator[httpx.Client]:
    with running.client() as http:
        yield http


@pytest.mark.parametrize("effort", ["none", "high"])
def test_it_reaches_the_template(running: Running, thinker: mp.Model, effort: Literal["none", "high"]) -> None:
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")
    message: ChatCompletionUserMessageParam = {"role": "user", "content": CHAT[0]["content"]}
    answer = client.chat.completions.create(
        model="any", messages=[message], reasoning_effort=effort, temperature=0, max_tokens=8
    )
    own = thinker.chat(CHAT, reasoning_effort=effort, temperature=0, max_tokens=8)
    assert answer.choices[0].message.content == own.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(thinker.tokenizer.chat(CHAT, reasoning_effort=effort))


def test_prompts_are_shown_with_it(http: httpx.Client, thinker: mp.Model) -> None:
    body = {"messages": CHAT, "reasoning_effort": "high"}
    expected = thinker.tokenizer.chat(CHAT, reasoning_effort="high")
    for path in ("/tokenize", "/apply-template"):
        assert http.post(path, json=body).json()["tokens"] == expected
    assert "<high>" in http.post("/apply-template", json=body).json()["prompt"]


@pytest.mark.parametrize("effort", ["low", "very"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_template_refuses(http: httpx.Client, effort: str, stream: bool) -> None:
    body = {"messages": CHAT, "reasoning_effort": effort, "stream": stream}
    answer = http.post("/v1/chat/completions", json=body)
    message = answer.json()["error"]["message"]
    assert (answer.status_code, "\n" in message) == (400, False)
    assert f"reasoning_effort {effort} is not known" in message


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/apply-template"])
def test_a_model_that_knows_none(server: Running, path: str) -> None:
    with server.client() as http:
        answer = http.post(path, json={"messages": CHAT, "reasoning_effort": "high"})
    assert answer.status_code == 400
    assert "knows no reasoning_effort; leave it out" in answer.json()["error"]["message"]
