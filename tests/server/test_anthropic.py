"""Anthropic's API, asked by Anthropic's own client."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import pytest
from scripted import call_tokens, scripted
from serving import CHAT, PATIENCE, Running, serving

import mistral_portable as mp

ASK: Any = CHAT
GREEDY = {"temperature": 0}
TOOL: Any = {
    "name": "weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", timeout=PATIENCE, max_retries=0) as client:
        yield client


def test_a_message_is_the_model_s_answer(client: anthropic.Anthropic, model: mp.Model) -> None:
    alone = model.chat(CHAT, temperature=0, max_tokens=50)
    answer = client.messages.create(model="any", max_tokens=50, messages=ASK, extra_body=GREEDY)
    (block,) = answer.content
    assert block.type == "text"
    assert block.text == alone.text
    assert (answer.stop_reason, answer.stop_sequence, answer.model, answer.role) == (
        "end_turn",
        None,
        "tiny",
        "assistant",
    )
    usage = answer.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == alone.timings.prefill_tokens
    assert usage.output_tokens == len(alone.tokens)


def test_a_stream_is_the_message_in_pieces(client: anthropic.Anthropic) -> None:
    body: Any = {"model": "any", "max_tokens": 6, "messages": ASK, "system": "Be kind", "extra_body": GREEDY}
    whole = client.messages.create(**body)
    with client.messages.stream(**body) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert text == "".join(block.text for block in whole.content if block.type == "text")
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def test_why_it_ends(client: anthropic.Anthropic, model: mp.Model) -> None:
    text = model.chat(CHAT, temperature=0).text
    word = text.split()[1]
    cut = client.messages.create(model="any", max_tokens=2, messages=ASK, extra_body=GREEDY)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)
    stopped = client.messages.create(
        model="any", max_tokens=50, messages=ASK, stop_sequences=["zebra", word], extra_body=GREEDY
    )
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    (block,) = stopped.content
    assert block.type == "text"
    assert block.text == text[: text.index(word)]


def test_tokens_are_counted(client: anthropic.Anthropic, model: mp.Model) -> None:
    counted = client.messages.count_tokens(model="any", messages=ASK, system="Be kind", tools=[TOOL])
    function = {"name": "weather", "description": TOOL["description"], "parameters": TOOL["input_schema"]}
    messages = [{"role": "system", "content": "Be kind"}, *CHAT]
    assert counted.input_tokens == len(
        model.tokenizer.chat(messages, tools=[{"type": "function", "function": function}])
    )


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called_and_answers(client: anthropic.Anthropic, model: mp.Model, streamed: bool) -> None:
    calls = '[{"name": "weather", "arguments": {"city": "Köln"}}, {"name": "weather", "arguments": {}}]'
    body: Any = {"model": "any", "max_tokens": 200, "messages": ASK, "tools": [TOOL]}
    with scripted(model, call_tokens(model, calls)):
        if streamed:
            with client.messages.stream(**body) as stream:
                answer: Any = stream.get_final_message()
        else:
            answer = client.messages.create(**body)
    assert answer.stop_reason == "tool_use"
    assert [(block.type, block.name, block.input) for block in answer.content] == [
        ("tool_use", "weather", {"city": "Köln"}),
        ("tool_use", "weather", {}),
    ]
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": "cold"} for block in answer.content]
    turns = [*ASK, {"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    after = client.messages.create(**{**body, "messages": turns, "max_tokens": 3})
    assert after.usage.output_tokens <= 3


@pytest.mark.parametrize("streamed", [False, True])
def test_no_second_call_if_that_is_forbidden(client: anthropic.Anthropic, model: mp.Model, streamed: bool) -> None:
    calls = '[{"name": "weather", "arguments": {"city": "Rome"}}, {"name": "weather", "arguments": {}}]'
    choice: Any = {"type": "auto", "disable_parallel_tool_use": True}
    body: Any = {"model": "any", "max_tokens": 200, "messages": ASK, "tools": [TOOL], "tool_choice": choice}
    with scripted(model, call_tokens(model, calls)):
        if streamed:
            with client.messages.stream(**body) as stream:
                answer: Any = stream.get_final_message()
        else:
            answer = client.messages.create(**body)
    (block,) = answer.content
    assert (answer.stop_reason, block.input) == ("tool_use", {"city": "Rome"})


PLACE = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
STRICT: Any = {"name": "weather", "input_schema": {**PLACE, "additionalProperties": False}}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}], ids=str)
def test_a_call_is_demanded(client: anthropic.Anthropic, choice: Any, streamed: bool) -> None:
    choice = {**choice, "disable_parallel_tool_use": True}
    body: Any = {"model": "any", "max_tokens": 200, "messages": ASK, "tools": [STRICT], "tool_choice": choice}
    if streamed:
        with client.messages.stream(**body) as stream:
            answer: Any = stream.get_final_message()
    else:
        answer = client.messages.create(**body)
    (block,) = answer.content
    assert (answer.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "weather")
    jsonschema.validate(block.input, STRICT["input_schema"])


def test_a_schema_is_kept(client: anthropic.Anthropic) -> None:
    properties = {"color": {"enum": ["red", "white"]}}
    schema = {"type": "object", "properties": properties, "required": ["color"], "additionalProperties": False}
    config: Any = {"format": {"type": "json_schema", "schema": schema}}
    answer = client.messages.create(model="any", max_tokens=100, messages=ASK, output_config=config)
    (block,) = answer.content
    assert block.type == "text"
    jsonschema.validate(json.loads(block.text), schema)


BAD = {"name": "bad", "input_schema": {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 0}, "max_tokens: "),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.0.content.0.text: "),
        ({"messages": [{"role": "user", "content": "red " * 40000}]}, "tokens"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice: "),
        ({"tools": [BAD], "tool_choice": {"type": "any"}}, 'tools: the parameters of "bad": '),
    ],
)
def test_what_is_refused(client: anthropic.Anthropic, fields: Any, words: str) -> None:
    body: Any = {"model": "any", "max_tokens": 9, "messages": ASK, **fields}
    for streamed in (False, True):
        with pytest.raises(anthropic.BadRequestError) as caught:
            client.messages.create(**body, stream=streamed)
        error: Any = caught.value.body
        assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
        assert words in error["error"]["message"]


def test_a_busy_server_says_so(model: mp.Model) -> None:
    with serving(model, max_queue=0) as running:
        client = anthropic.Anthropic(base_url=running.url, api_key="any", timeout=PATIENCE, max_retries=0)
        full = running.service.queue.admit(running.service.queue.limit)
        with client, full, pytest.raises(anthropic.APIStatusError) as caught:
            client.messages.create(model="any", max_tokens=9, messages=ASK)
        error: Any = caught.value.body
    assert (caught.value.status_code, error["error"]["type"]) == (503, "overloaded_error")


def test_models(client: anthropic.Anthropic) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").display_name == "tiny"
