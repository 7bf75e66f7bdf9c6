"""Streams of Ollama's API: their lines add up to the whole answer."""

import json

import pytest
from drawn_deltas import Drawn, drawn_answers, written
from hypothesis import given
from ollama import ChatResponse, GenerateResponse

import mistral_portable as mp
from mistral_portable.ollama.answers import ChatLines, GenerateLines
from mistral_portable.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    with mp.load("tiny", backend="reference") as model:
        return model.tokenizer


@given(drawn_answers())
def test_a_chat_s_lines(tokenizer: Tokenizer, answer: Drawn) -> None:
    lines = [ChatResponse(**line) for line in written(ChatLines("m"), answer)]
    whole = ChatResponse(**ChatLines("m").whole(answer.generation, tokenizer))
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert "".join(line.message.content or "" for line in lines) == whole.message.content == answer.generation.text
    assert "".join(line.message.thinking or "" for line in lines) == (whole.message.thinking or "")
    calls = [call for line in lines for call in line.message.tool_calls or ()]
    assert calls == list(whole.message.tool_calls or ())
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        (call.name, json.loads(call.arguments)) for call in answer.generation.tool_calls
    ]
    for last in (lines[-1], whole):
        assert last.done_reason == answer.generation.finish_reason
        assert last.prompt_eval_count == answer.generation.timings.prefill_tokens
        assert last.eval_count == len(answer.generation.tokens)
        assert (last.prompt_eval_duration, last.eval_duration, last.total_duration) == (
            25 * 10**7,
            5 * 10**8,
            75 * 10**7,
        )


@given(drawn_answers())
def test_a_text_s_lines(tokenizer: Tokenizer, answer: Drawn) -> None:
    lines = [GenerateResponse(**line) for line in written(GenerateLines("m"), answer)]
    whole = GenerateResponse(**GenerateLines("m").whole(answer.generation, tokenizer))
    assert "".join(line.response or "" for line in lines) == whole.response == answer.generation.text
    assert "".join(line.thinking or "" for line in lines) == (whole.thinking or "") == answer.generation.reasoning
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
