"""Ollama's API, asked by Ollama's own client."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import ollama
import pytest
from scripted import call_tokens, scripted
from serving import CHAT, PATIENCE, Running

import mistral_portable as mp

GREEDY = {"temperature": 0, "num_predict": 50}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url, timeout=PATIENCE) as client:
        yield client


def test_a_chat_is_the_model_s(client: ollama.Client, model: mp.Model) -> None:
    alone = model.chat(CHAT, temperature=0, max_tokens=50)
    whole = client.chat(model="any", messages=CHAT, options=GREEDY)
    lines = list(client.chat(model="any", messages=CHAT, options=GREEDY, stream=True))
    assert whole.message.content == "".join(line.message.content or "" for line in lines) == alone.text
    for last in (whole, lines[-1]):
        assert (last.done, last.done_reason, last.eval_count) == (True, "stop", len(alone.tokens))
        assert last.prompt_eval_count == alone.timings.prefill_tokens
        assert (last.total_duration or 0) > 0
    assert not any(line.done for line in lines[:-1])


def test_a_text_is_continued_or_answered(client: ollama.Client, model: mp.Model) -> None:
    options = {"temperature": 0, "num_predict": 8}
    raw = client.generate(model="any", prompt="Once upon a time", raw=True, options=options)
    assert raw.response == model.generate("Once upon a time", temperature=0, max_tokens=8).text
    assert raw.done_reason == "length"
    answered = client.generate(model="any", prompt=CHAT[0]["content"], system="Be kind", options=options)
    messages = [{"role": "system", "content": "Be kind"}, *CHAT]
    assert answered.response == model.chat(messages, temperature=0, max_tokens=8).text
    lines = list(client.generate(model="any", prompt="Once upon a time", raw=True, options=options, stream=True))
    assert "".join(line.response or "" for line in lines) == raw.response


def test_log_probabilities(client: ollama.Client, model: mp.Model) -> None:
    options = {"temperature": 0, "num_predict": 3}
    answer = client.generate(model="any", prompt="Once", raw=True, options=options, logprobs=True, top_logprobs=2)
    alone = model.generate("Once", temperature=0, max_tokens=3, logprobs=2)
    assert answer.logprobs is not None
    assert alone.logprobs is not None
    assert [one.logprob for one in answer.logprobs] == [one.logprob for one in alone.logprobs]
    assert [len(one.top_logprobs or ()) for one in answer.logprobs] == [2, 2, 2]


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_are_called_and_answer(client: ollama.Client, model: mp.Model, streamed: bool) -> None:
    calls = '[{"name": "weather", "arguments": {"city": "Köln"}}, {"name": "weather", "arguments": {}}]'
    with scripted(model, call_tokens(model, calls)):
        if streamed:
            lines = list(
                client.chat(model="any", messages=CHAT, tools=[TOOL], options={"num_predict": 200}, stream=True)
            )
            made = [call for line in lines for call in line.message.tool_calls or ()]
        else:
            made = list(client.chat(model="any", messages=CHAT, tools=[TOOL]).message.tool_calls or ())
    assert [(call.function.name, dict(call.function.arguments)) for call in made] == [
        ("weather", {"city": "Köln"}),
        ("weather", {}),
    ]
    turn = ollama.Message(role="assistant", tool_calls=made)
    results = [{"role": "tool", "tool_name": "weather", "content": "cold"}] * 2
    after = client.chat(model="any", messages=[*CHAT, turn, *results], tools=[TOOL], options={"num_predict": 3})
    assert (after.eval_count or 0) <= 3


@pytest.mark.parametrize("raw", [False, True])
def test_a_schema_is_kept(client: ollama.Client, raw: bool) -> None:
    properties = {"color": {"enum": ["red", "white"]}}
    schema = {"type": "object", "properties": properties, "required": ["color"], "additionalProperties": False}
    text = client.generate(model="any", prompt="Tom has", raw=raw, format=schema).response
    jsonschema.validate(json.loads(text or ""), schema)
    options = {"num_predict": 400, "temperature": 0}
    answer = client.chat(model="any", messages=CHAT, format="json", options=options)
    if answer.done_reason == "stop":
        assert isinstance(json.loads(answer.message.content or ""), dict)
    else:
        assert (answer.message.content or "").startswith("{")


def test_without_a_prompt_the_model_is_loaded(client: ollama.Client) -> None:
    assert client.generate(model="any").done_reason == "load"
    assert client.chat(model="any").done_reason == "load"


def test_what_it_says_of_the_model(client: ollama.Client, model: mp.Model, server: Running) -> None:
    (listed,) = client.list().models
    (running,) = client.ps().models
    assert (listed.model, running.model, running.context_length) == ("tiny", "tiny", model.max_context)
    assert listed.digest == running.digest
    shown = client.show("tiny")
    assert shown.modelinfo is not None
    assert shown.modelinfo["mistral.context_length"] == model.max_context
    assert shown.modelinfo["general.parameter_count"] > 10**6
    assert "tools" in (shown.capabilities or ())
    assert httpx.get(f"{server.url}/api/version").json()["version"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"options": {"top_p": 7}}, "top_p"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aaaa"]}]}, "images"),
        ({"messages": [{"role": "user", "content": "red " * 40000}]}, "tokens"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_refused(client: ollama.Client, call: Any, words: str, streamed: bool) -> None:
    body: Any = {"model": "any", "messages": CHAT, "stream": streamed, **call}
    with pytest.raises(ollama.ResponseError, match=words) as caught:
        list(client.chat(**body))
    assert caught.value.status_code == 400
