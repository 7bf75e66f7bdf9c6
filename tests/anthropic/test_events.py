"""Streams of Anthropic's API: its own client makes the same message of them as of a whole answer."""

import json
from dataclasses import replace
from typing import Any

import anthropic
import httpx2
from drawn_deltas import Drawn, drawn_answers, written
from hypothesis import given

from mistral_portable.answers import ToolCall
from mistral_portable.anthropic.answers import message
from mistral_portable.anthropic.events import MessageEvents
from mistral_portable.engine import Generation
from mistral_portable.engine.generation import Timings


def _received(events: list[dict[str, Any]]) -> anthropic.types.Message:
    """The message that the client makes of events."""
    body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)

    def respond(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body.encode())

    http = httpx2.Client(transport=httpx2.MockTransport(respond))
    client = anthropic.Anthropic(api_key="x", base_url="http://here", http_client=http, max_retries=0)
    ask: Any = [{"role": "user", "content": "x"}]
    with client, client.messages.stream(model="m", max_tokens=9, messages=ask) as stream:
        return stream.get_final_message()


def _contents(content: list[Any]) -> tuple[str, str, list[tuple[str, str, Any]]]:
    text = "".join(block.text for block in content if block.type == "text")
    thinking = "".join(block.thinking for block in content if block.type == "thinking")
    return text, thinking, [(block.id, block.name, block.input) for block in content if block.type == "tool_use"]


@given(drawn_answers())
def test_streamed_is_whole(answer: Drawn) -> None:
    events = written(MessageEvents("m", answer.generation.timings.prefill_tokens), answer)
    streamed = _received(events)
    whole = anthropic.types.Message.model_validate(message(answer.generation, "m"))
    assert _contents(streamed.content) == _contents(whole.content)
    assert (streamed.stop_reason, streamed.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert streamed.usage.output_tokens == whole.usage.output_tokens == len(answer.generation.tokens)
    assert streamed.usage.input_tokens + (streamed.usage.cache_read_input_tokens or 0) == (
        answer.generation.timings.prefill_tokens
    )


@given(drawn_answers())
def test_blocks_come_one_after_another(answer: Drawn) -> None:
    events = written(MessageEvents("m", 5), answer)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    index, is_open = -1, False
    for event in events[2:-2]:
        if event["type"] == "content_block_start":
            assert not is_open
            index, is_open = index + 1, True
        else:
            assert is_open
            is_open = event["type"] == "content_block_delta"
        assert event["index"] == index
    assert not is_open


def test_why_an_answer_ends() -> None:
    plain = Generation("a", (1, 2), "stop", None, Timings(0, 5, 2, 0, 1, 0, 0))
    call = (ToolCall("abcdefghi", "f", "{}"),)
    for generation, reason, sequence in (
        (plain, "end_turn", None),
        (replace(plain, finish_reason="length"), "max_tokens", None),
        (replace(plain, stop_string="END"), "stop_sequence", "END"),
        (replace(plain, tool_calls=call), "tool_use", None),
        (replace(plain, tool_calls=call, finish_reason="length"), "max_tokens", None),
    ):
        made = message(generation, "m")
        assert (made["stop_reason"], made["stop_sequence"]) == (reason, sequence)
        assert made["usage"]["input_tokens"] == 3
        assert made["usage"]["cache_read_input_tokens"] == 2
