"""Mistral's API, asked by Mistral's own client."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError
from serving import CHAT, PATIENCE, Running

import mistral_portable as mp

ASK: Any = CHAT


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Mistral]:
    with Mistral(api_key="any", server_url=server.url, timeout_ms=PATIENCE * 1000) as client:
        yield client


def test_a_chat_is_the_model_s(client: Mistral, model: mp.Model) -> None:
    alone = model.chat(CHAT, temperature=1.3, seed=5, max_tokens=20)
    answer = client.chat.complete(model="any", messages=ASK, temperature=1.3, random_seed=5, max_tokens=20)
    assert answer.choices[0].message is not None
    assert answer.choices[0].message.content == alone.text
    chunks = client.chat.stream(model="any", messages=ASK, temperature=1.3, random_seed=5, max_tokens=20)
    assert "".join(chunk.data.choices[0].delta.content or "" for chunk in chunks) == alone.text


PLACE = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {**PLACE, "additionalProperties": False}},
}


@pytest.mark.parametrize("choice", ["any", "required", {"type": "function", "function": {"name": "weather"}}], ids=str)
def test_a_call_is_demanded(client: Mistral, choice: Any) -> None:
    body: Any = {"model": "any", "messages": ASK, "tools": [WEATHER], "tool_choice": choice}
    answer = client.chat.complete(**body, parallel_tool_calls=False)
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    chunks = [event.data.choices[0] for event in client.chat.stream(**body, parallel_tool_calls=False)]
    (whole,) = [piece for chunk in chunks for piece in chunk.delta.tool_calls or ()]
    assert (whole.function.name, whole.function.arguments) == ("weather", call.function.arguments)
    assert chunks[-1].finish_reason == "tool_calls"


def test_models(client: Mistral, model: mp.Model) -> None:
    cards: Any = client.models.list().data
    (card,) = cards
    assert (card.id, card.max_context_length) == ("tiny", model.max_context)
    assert (card.capabilities.completion_chat, card.capabilities.completion_fim) == (True, False)
    one: Any = client.models.retrieve(model_id="tiny")
    assert one.id == "tiny"


def test_a_vocabulary_without_the_tokens_fills_no_gap(client: Mistral) -> None:
    with pytest.raises(SDKError, match=r"suffix: .*\[SUFFIX\]"):
        client.fim.complete(model="any", prompt="def f(", suffix="return 1")


def test_a_gap_is_filled(client: Mistral, model: mp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # The embedded vocabulary has no [SUFFIX]: the prompt alone stands for the encoded gap.
    monkeypatch.setattr(type(model.tokenizer), "fim", lambda self, prompt, suffix: self.encode(prompt))
    alone = model.generate("Once upon", temperature=0, max_tokens=8)
    body: Any = {"model": "any", "prompt": "Once upon", "suffix": ".", "temperature": 0, "max_tokens": 8}
    answer = client.fim.complete(**body)
    (choice,) = answer.choices
    assert choice.message is not None
    assert (choice.message.content, choice.finish_reason) == (alone.text, "length")
    assert answer.usage.completion_tokens == 8
    chunks = [event.data for event in client.fim.stream(**body)]
    assert "".join(str(chunk.choices[0].delta.content or "") for chunk in chunks) == alone.text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    assert client.fim.complete(**body, min_tokens=8).choices == answer.choices
    with pytest.raises(SDKError, match="min_tokens=9 is more than max_tokens=8"):
        client.fim.complete(**body, min_tokens=9)
