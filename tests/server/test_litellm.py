"""LiteLLM, which many programs (aider, agents, gateways) ask with: through OpenAI's API, and through the others."""

import json
import os
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from scripted import call_tokens, scripted
from serving import CHAT, PATIENCE, Running

import mistral_portable as mp

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else importing it asks a server in the internet
litellm = pytest.importorskip("litellm", reason="250 MB, so not of the extra `test`: pip install litellm")

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Ball(BaseModel):
    """A ball."""

    color: Literal["red", "white"]


@pytest.fixture(params=["openai", "anthropic", "ollama_chat"])
def options(server: Running, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The arguments of `completion`: each API by its provider."""
    path = "/v1" if request.param == "openai" else ""
    return {
        "model": f"{request.param}/any",
        "api_base": f"{server.url}{path}",
        "api_key": "any",
        "messages": CHAT,
        "temperature": 0,
        "max_tokens": 100,
        "timeout": PATIENCE,
        "num_retries": 0,
        "max_retries": 0,
    }


def test_an_answer_is_the_model_s(options: dict[str, Any], model: mp.Model) -> None:
    alone = model.chat(CHAT, temperature=0, max_tokens=100)
    answer = litellm.completion(**options)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (alone.text, "stop")
    assert answer.usage.completion_tokens == len(alone.tokens)
    assert answer.usage.prompt_tokens == alone.timings.prefill_tokens


def test_a_stream_is_the_answer_in_pieces(options: dict[str, Any], model: mp.Model) -> None:
    chunks = list(litellm.completion(**options, stream=True, stream_options={"include_usage": True}))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    alone = model.chat(CHAT, temperature=0, max_tokens=100)
    assert "".join(choice.delta.content or "" for choice in choices) == alone.text
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    (usage,) = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert usage.completion_tokens == len(alone.tokens)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called_and_its_result_answered(options: dict[str, Any], model: mp.Model, streamed: bool) -> None:
    options |= {"tools": [TOOL]}
    with scripted(model, call_tokens(model, '[{"name": "weather", "arguments": {"city": "Köln"}}]')):
        answer = litellm.completion(**options, stream=streamed)
        if streamed:
            answer = litellm.stream_chunk_builder(list(answer), messages=CHAT)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Köln"})
    result = {"role": "tool", "tool_call_id": call.id, "content": "cold"}
    turns = [*CHAT, choice.message.model_dump(), result]
    with scripted(model, model.tokenizer.encode("Take a coat.", bos=False)):
        after = litellm.completion(**{**options, "messages": turns})
    assert after.choices[0].message.content.strip() == "Take a coat."


@pytest.mark.parametrize("options", ["openai", "ollama_chat"], indirect=True)  # of "anthropic" it makes a forced call
def test_a_schema_is_kept(options: dict[str, Any]) -> None:
    answer = litellm.completion(**options, response_format=Ball)
    Ball.model_validate_json(answer.choices[0].message.content)


@pytest.mark.parametrize("streamed", [False, True])
def test_errors(options: dict[str, Any], streamed: bool) -> None:
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        list(litellm.completion(**{**options, "temperature": -1}, stream=streamed))


@pytest.mark.parametrize("options", ["openai", "anthropic"], indirect=True)  # it knows no such error of Ollama's
@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_that_is_too_long_is_known_as_such(options: dict[str, Any], streamed: bool) -> None:
    """Agents that shorten their conversation wait for this error."""
    options |= {"messages": [{"role": "user", "content": "word " * 40000}]}
    with pytest.raises(litellm.ContextWindowExceededError):
        list(litellm.completion(**options, stream=streamed))
