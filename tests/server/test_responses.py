"""OpenAI's Responses API, asked by OpenAI's own client."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from scripted import call_tokens, scripted
from serving import CHAT, PATIENCE, Running

import mistral_portable as mp

QUESTION = CHAT[0]["content"]
TOOL: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=PATIENCE, max_retries=0) as client:
        yield client


def test_a_response_is_the_model_s_answer(client: openai.OpenAI, model: mp.Model) -> None:
    alone = model.chat(CHAT, temperature=0, max_tokens=None)
    answer = client.responses.create(model="any", input=QUESTION, temperature=0)
    assert (answer.output_text, answer.status, answer.model) == (alone.text, "completed", "tiny")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (alone.timings.prefill_tokens, len(alone.tokens))
    with client.responses.stream(model="any", input=QUESTION, temperature=0) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(pieces) == final.output_text == alone.text


def test_one_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="any", input=QUESTION, temperature=0, max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    *_, last = client.responses.create(model="any", input=QUESTION, temperature=0, max_output_tokens=2, stream=True)
    assert last.type == "response.incomplete"
    assert last.response.output_text == answer.output_text


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called_and_answers(client: openai.OpenAI, model: mp.Model, streamed: bool) -> None:
    calls = '[{"name": "weather", "arguments": {"city": "Köln"}}]'
    with scripted(model, call_tokens(model, calls)):
        if streamed:
            with client.responses.stream(model="any", input=QUESTION, tools=[TOOL]) as stream:
                answer: Any = stream.get_final_response()
        else:
            answer = client.responses.create(model="any", input=QUESTION, tools=[TOOL])
    (item,) = answer.output
    assert (item.type, item.name, json.loads(item.arguments)) == ("function_call", "weather", {"city": "Köln"})
    call = {"type": "function_call", "call_id": item.call_id, "name": item.name, "arguments": item.arguments}
    items: Any = [
        {"role": "user", "content": QUESTION},
        call,
        {"type": "function_call_output", "call_id": item.call_id, "output": "cold"},
    ]
    after = client.responses.create(model="any", input=items, tools=[TOOL], max_output_tokens=3)
    assert after.usage is not None
    assert after.usage.output_tokens <= 3


PLACE = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "name": "weather", "parameters": {**PLACE, "additionalProperties": False}}
NOW: Any = {"type": "function", "name": "now", "parameters": None}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}], ids=str)
def test_a_call_is_demanded(client: openai.OpenAI, choice: Any, streamed: bool) -> None:
    body: Any = {"model": "any", "input": QUESTION, "tools": [WEATHER, NOW], "tool_choice": choice}
    if streamed:
        *_, last = client.responses.create(**body, parallel_tool_calls=False, stream=True)
        answer: Any = last.response
    else:
        answer = client.responses.create(**body, parallel_tool_calls=False)
    (item,) = answer.output
    assert (answer.status, item.type, item.status) == ("completed", "function_call", "completed")
    found = json.loads(item.arguments)
    assert found == {} if item.name == "now" else found["city"] in ("Paris", "Rome")


def test_a_function_without_parameters_takes_none(client: openai.OpenAI) -> None:
    body: Any = {"model": "any", "input": QUESTION, "tools": [NOW], "tool_choice": "required"}
    (item,) = client.responses.create(**body, parallel_tool_calls=False).output
    assert item.type == "function_call"
    assert item.arguments == "{}"


def test_a_schema_is_kept(client: openai.OpenAI) -> None:
    properties = {"color": {"enum": ["red", "white"]}}
    schema = {"type": "object", "properties": properties, "required": ["color"], "additionalProperties": False}
    text: Any = {"format": {"type": "json_schema", "name": "ball", "schema": schema, "strict": True}}
    answer = client.responses.create(model="any", input=QUESTION, text=text)
    jsonschema.validate(json.loads(answer.output_text), schema)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "fields", [{"previous_response_id": "resp_1"}, {"store": True}, {"input": "red " * 40000}, {"temperature": -1}]
)
def test_what_is_refused(client: openai.OpenAI, fields: Any, streamed: bool) -> None:
    body: Any = {"model": "any", "input": QUESTION, "stream": streamed, **fields}
    with pytest.raises(openai.BadRequestError):
        client.responses.create(**body)
