"""Tool calls in answers of OpenAI's API, whole and streamed, demanded or not, and the conversation going on."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from answers.scripted import QUESTION, TOOL, script, written
from serving import PATIENCE, serving

import mistral_portable as mp

CALL = '[{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefgh1"}]'
ARGUMENTS = '{"city": "Paris"}'


@pytest.fixture(scope="module")
def model() -> Iterator[mp.Model]:
    with mp.load("tiny", backend="reference", max_lanes=2) as model:
        yield model


@pytest.fixture
def create(model: mp.Model) -> Iterator[Any]:
    """The function of OpenAI's client that asks."""
    with (
        serving(model) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", timeout=PATIENCE, max_retries=0) as client,
    ):
        create: Any = client.chat.completions.create
        yield lambda **options: create(**{"model": "any", "temperature": 0, "tools": [TOOL], **options})


@pytest.fixture
def calls(model: mp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to QUESTION, with TOOL, is a text and a call."""
    tokens = [*written(model.tokenizer, "the", "[TOOL_CALLS]", CALL), model.tokenizer.eos_id]
    script(monkeypatch, model.tokenizer.chat(QUESTION, tools=[TOOL]), tokens)


@pytest.mark.usefixtures("calls")
def test_a_call_and_its_result(create: Any, model: mp.Model) -> None:
    (choice,) = create(messages=QUESTION).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "the")
    (call,) = choice.message.tool_calls
    assert (call.id, call.type, call.function.name, call.function.arguments) == (
        "abcdefgh1",
        "function",
        "weather",
        ARGUMENTS,
    )
    asked = choice.message.model_dump(exclude_none=True) | {"content": None}
    going_on = [*QUESTION, asked, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    answer = create(messages=going_on, max_tokens=2)
    assert answer.usage.prompt_tokens == len(model.tokenizer.chat(going_on, tools=[TOOL]))


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("logprobs", [False, True])
def test_a_streamed_call(create: Any, logprobs: bool) -> None:
    whole = create(messages=QUESTION, logprobs=logprobs).choices[0]
    chunks = [chunk.choices[0] for chunk in create(messages=QUESTION, logprobs=logprobs, stream=True)]
    assert chunks[0].delta.role == "assistant"
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "the"
    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or ()]
    assert {piece.index for piece in pieces} == {0}
    assert (pieces[0].id, pieces[0].type, pieces[0].function.name) == ("abcdefgh1", "function", "weather")
    assert "".join(piece.function.arguments for piece in pieces) == ARGUMENTS
    assert (chunks[-1].finish_reason, chunks[-1].delta.content) == ("tool_calls", None)
    if logprobs:
        streamed = [one for chunk in chunks if chunk.logprobs for one in chunk.logprobs.content]
        assert streamed == whole.logprobs.content


@pytest.mark.usefixtures("calls")
def test_a_call_that_is_cut_off_is_text(create: Any) -> None:
    whole = create(messages=QUESTION, max_tokens=9).choices[0]
    chunks = [chunk.choices[0] for chunk in create(messages=QUESTION, max_tokens=9, stream=True)]
    assert (whole.finish_reason, whole.message.tool_calls) == ("length", None)
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].finish_reason == "length"


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("streamed", [False, True])
def test_one_call_if_more_are_forbidden(create: Any, streamed: bool) -> None:
    body = {"messages": QUESTION, "parallel_tool_calls": False}
    if streamed:
        chunks = [chunk.choices[0] for chunk in create(**body, stream=True)]
        pieces = [piece.function.arguments for chunk in chunks for piece in chunk.delta.tool_calls or ()]
        found = ("".join(pieces), chunks[-1].finish_reason)
    else:
        (choice,) = create(**body).choices
        (call,) = choice.message.tool_calls
        found = (call.function.arguments, choice.finish_reason)
    assert found == (ARGUMENTS, "tool_calls")


def tool(name: str, value: str) -> dict[str, Any]:
    """A function with one parameter, of one value: the embedded model would never end a text of its own."""
    properties = {"city": {"enum": [value]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}
    parameters = {"type": "object", "properties": properties, "required": ["city"], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


TWO = [tool("weather", "Paris"), tool("forecast", "Rome")]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", ["weather", "forecast"]),
        ("any", ["weather", "forecast"]),
        ({"type": "function", "function": {"name": "forecast"}}, ["forecast"]),
    ],
    ids=str,
)
def test_a_call_is_demanded(create: Any, choice: Any, names: list[str], streamed: bool) -> None:
    for seed in range(3):
        body = {"messages": QUESTION, "tools": TWO, "tool_choice": choice, "temperature": 1.5, "seed": seed}
        body["parallel_tool_calls"] = False
        if streamed:
            chunks = [chunk.choices[0] for chunk in create(**body, stream=True)]
            pieces = [piece.function for chunk in chunks for piece in chunk.delta.tool_calls or ()]
            name, arguments = pieces[0].name, "".join(piece.arguments for piece in pieces)
            content, reason = "".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason
        else:
            (answer,) = create(**body).choices
            (call,) = answer.message.tool_calls
            name, arguments = call.function.name, call.function.arguments
            content, reason = answer.message.content or "", answer.finish_reason
        assert (content, reason) == ("", "tool_calls")
        assert name in names
        (schema,) = (one["function"]["parameters"] for one in TWO if one["function"]["name"] == name)
        jsonschema.validate(json.loads(arguments), schema)


def test_several_calls_may_be_demanded_and_are_cut(create: Any) -> None:
    answer = create(messages=QUESTION, tools=TWO, tool_choice="required", max_tokens=60).choices[0]
    for call in answer.message.tool_calls or ():
        assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    cut = create(messages=QUESTION, tools=TWO, tool_choice="required", max_tokens=6).choices[0]
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)
    assert cut.message.content.startswith('[{"n')


def test_each_of_n_answers_is_a_call(create: Any) -> None:
    body = {"messages": QUESTION, "tools": TWO[:1], "tool_choice": "required", "parallel_tool_calls": False}
    answer = create(**body, n=3)
    assert [len(choice.message.tool_calls) for choice in answer.choices] == [1, 1, 1]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tools": [], "tool_choice": "required"}, "tool_choice: a tool must be called, and there are none"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice: 'f' is none of the tools"),
        ({"tool_choice": {"type": "function"}}, "tool_choice={'type': 'function'} must be"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"parallel_tool_calls": 3}, "parallel_tool_calls: .*got 3"),
        ({"tool_choice": "required", "extra_body": {"regex": "a"}}, "tools: an answer that follows a rule"),
        ({"tool_choice": "required", "extra_body": {"ignore_eos": True}}, "ignore_eos"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_demanded_is_said(create: Any, options: dict[str, Any], words: str, streamed: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        create(**{"messages": QUESTION, "tools": [TOOL], "stream": streamed, **options})


def test_a_schema_that_cannot_be_kept_names_its_tool(create: Any) -> None:
    bad = tool("bad", "x")
    bad["function"]["parameters"]["properties"]["days"] = {"not": {"type": "string"}}
    with pytest.raises(openai.BadRequestError, match=r'tools: the parameters of "bad": .*not'):
        create(messages=QUESTION, tools=[*TWO, bad], tool_choice="required")
    assert create(messages=QUESTION, tools=[*TWO, bad], max_tokens=1).choices
