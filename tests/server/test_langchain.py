"""OpenAI's API, asked by LangChain: what its models do with answers, streams, tools and schemas."""

import asyncio
from typing import Literal

import openai
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr
from scripted import call_tokens, scripted
from serving import CHAT, PATIENCE, Running

import mistral_portable as mp

QUESTION = CHAT[0]["content"]


class Ball(BaseModel):
    """A ball."""

    color: Literal["red", "white"]


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"Rain in {city}"


@pytest.fixture(scope="module")
def llm(server: Running) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{server.url}/v1",
        api_key=SecretStr("any"),
        model="any",
        temperature=0,
        timeout=PATIENCE,
        max_retries=0,
        stream_usage=True,
    )


def test_an_answer_is_the_model_s(llm: ChatOpenAI, model: mp.Model) -> None:
    alone = model.chat(CHAT, temperature=0, max_tokens=None)
    answer = llm.invoke(QUESTION)
    assert isinstance(answer, AIMessage)
    assert answer.text == alone.text
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == len(alone.tokens)
    assert answer.usage_metadata["input_tokens"] == alone.timings.prefill_tokens


def test_a_stream_is_the_answer_in_pieces(llm: ChatOpenAI, model: mp.Model) -> None:
    alone = model.chat(CHAT, temperature=0, max_tokens=None)
    chunks = list(llm.stream(QUESTION))
    assert "".join(chunk.text for chunk in chunks) == alone.text
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == len(alone.tokens)


def test_a_batch_in_coroutines(llm: ChatOpenAI, model: mp.Model) -> None:
    questions = [QUESTION, "Who is Tom?", "What is a ball?"]
    answers = asyncio.run(llm.abatch([*questions]))
    alone = [model.chat([{"role": "user", "content": text}], temperature=0, max_tokens=None) for text in questions]
    assert [answer.text for answer in answers] == [one.text for one in alone]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called_and_its_result_answered(llm: ChatOpenAI, model: mp.Model, streamed: bool) -> None:
    able = llm.bind_tools([weather])
    messages: list[SystemMessage | HumanMessage | AIMessage | ToolMessage] = [
        SystemMessage("Be kind"),
        HumanMessage([{"type": "text", "text": QUESTION}]),
    ]
    calls = '[{"name": "weather", "arguments": {"city": "Köln"}}, {"name": "weather", "arguments": {"city": "Rome"}}]'
    with scripted(model, call_tokens(model, calls)):
        if streamed:
            first, *rest = able.stream(messages)
            for chunk in rest:
                first += chunk  # type: ignore[assignment]
            asked = first
        else:
            asked = able.invoke(messages)
    assert isinstance(asked, AIMessage)
    assert asked.response_metadata["finish_reason"] == "tool_calls"
    assert [(call["name"], call["args"]) for call in asked.tool_calls] == [
        ("weather", {"city": "Köln"}),
        ("weather", {"city": "Rome"}),
    ]
    results = [weather.invoke(call) for call in asked.tool_calls]
    with scripted(model, model.tokenizer.encode("Take a coat.", bos=False)):
        answer = able.invoke([*messages, asked, *results])
    assert answer.text.strip() == "Take a coat."


def test_structured_output(llm: ChatOpenAI) -> None:
    assert isinstance(llm.with_structured_output(Ball).invoke(QUESTION), Ball)
    *_, last = llm.with_structured_output(Ball).stream(QUESTION)
    assert isinstance(last, Ball)


def test_structured_output_that_is_cut_is_an_error(llm: ChatOpenAI) -> None:
    short = llm.model_copy(update={"max_tokens": 2})
    with pytest.raises(openai.LengthFinishReasonError):
        short.with_structured_output(Ball).invoke(QUESTION)


@pytest.mark.parametrize("streamed", [False, True])
def test_errors(llm: ChatOpenAI, streamed: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        list(llm.stream(QUESTION, temperature=-1)) if streamed else llm.invoke(QUESTION, temperature=-1)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_that_is_too_long_is_known_as_such(llm: ChatOpenAI, streamed: bool) -> None:
    """Agents that shorten their conversation wait for this error."""
    long = "word " * 40000
    with pytest.raises(ContextOverflowError):
        list(llm.stream(long)) if streamed else llm.invoke(long)


def test_the_responses_api(llm: ChatOpenAI, model: mp.Model) -> None:
    newer = llm.model_copy(update={"use_responses_api": True})
    alone = model.chat(CHAT, temperature=0, max_tokens=None).text
    answer = newer.invoke(QUESTION)
    assert answer.text == "".join(chunk.text for chunk in newer.stream(QUESTION)) == alone
    assert isinstance(newer.with_structured_output(Ball).invoke(QUESTION), Ball)
    with scripted(model, call_tokens(model, '[{"name": "weather", "arguments": {"city": "Köln"}}]')):
        asked = newer.bind_tools([weather]).invoke(QUESTION)
    assert [(call["name"], call["args"]) for call in asked.tool_calls] == [("weather", {"city": "Köln"})]
    result = weather.invoke(asked.tool_calls[0])
    with scripted(model, model.tokenizer.encode("Take a coat.", bos=False)):
        after = newer.invoke([HumanMessage(QUESTION), answer, HumanMessage("Rain?"), asked, result])
    assert after.text.strip() == "Take a coat."
