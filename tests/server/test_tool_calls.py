"""Tool calls in answers of OpenAI's API, whole and streamed, and the same conversation going on."""

from collections.abc import Iterator
from typing import Any

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
        yield lambda **options: create(model="any", temperature=0, tools=[TOOL], **options)


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


def test_what_is_not_supported_is_said(create: Any) -> None:
    for options in ({"parallel_tool_calls": False}, {"tool_choice": "required"}):
        with pytest.raises(openai.BadRequestError, match=next(iter(options))):
            create(messages=QUESTION, **options)
