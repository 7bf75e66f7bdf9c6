"""Streams of /v1/responses: numbered events in their order, which OpenAI's own models accept, add up to the answer."""

import json
from typing import Any

import httpx2
import openai
from drawn_deltas import Drawn, drawn_answers, written
from hypothesis import given
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from mistral_portable.openai.response_answers import Response
from mistral_portable.openai.response_events import ResponseEvents
from mistral_portable.openai.responses import ResponseRequest
from mistral_portable.sampling import SamplingParams

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def _events(answer: Drawn) -> list[dict[str, Any]]:
    request = ResponseRequest.model_validate({"input": "Hello"})
    return written(ResponseEvents(Response("m", request.settings(SamplingParams()))), answer)


def _text(output: list[Any], kind: str) -> str:
    return "".join(part["text"] for item in output if item["type"] == kind for part in item["content"])


def _calls(output: list[Any]) -> list[tuple[str, str, str]]:
    return [(one["call_id"], one["name"], one["arguments"]) for one in output if one["type"] == "function_call"]


@given(drawn_answers())
def test_streamed_is_whole(answer: Drawn) -> None:
    whole = Response("m", ResponseRequest.model_validate({"input": "Hello"}).settings(SamplingParams())).whole(
        answer.generation
    )
    last = _events(answer)[-1]["response"]
    for made in (whole, last):
        OpenAIResponse.model_validate(made)
        assert _text(made["output"], "message") == answer.generation.text
        assert _text(made["output"], "reasoning") == answer.generation.reasoning
        assert _calls(made["output"]) == [(call.id, call.name, call.arguments) for call in answer.generation.tool_calls]
    for name in ("status", "incomplete_details", "usage", "tools", "text", "store"):
        assert whole[name] == last[name]
    assert whole["status"] == ("incomplete" if answer.generation.finish_reason == "length" else "completed")
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


@given(drawn_answers())
def test_events_come_in_their_order(answer: Drawn) -> None:
    events = _events(answer)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:2] == ["created", "in_progress"]
    assert kinds[-1] in ("completed", "incomplete")
    done: list[Any] = []
    added, pieces = None, ""
    for event, kind in zip(events[2:-1], kinds[2:-1], strict=True):
        EVENT.validate_python(event)
        if kind == "output_item.added":
            assert added is None
            added, pieces = event["item"], ""
            assert event["output_index"] == len(done)
            continue
        assert added is not None
        if kind == "output_item.done":
            assert event["item"]["id"] == added["id"]
            done.append(event["item"])
            added = None
        else:
            assert event["item_id"] == added["id"]
            pieces += event["delta"] if kind.endswith(".delta") else ""
            if kind in ("output_text.done", "reasoning_text.done"):
                assert event["text"] == pieces
            elif kind == "function_call_arguments.done":
                assert event["arguments"] == pieces
    assert added is None
    assert events[-1]["response"]["output"] == done


@given(drawn_answers())
def test_the_client_s_own_accumulation(answer: Drawn) -> None:
    body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in _events(answer))

    def respond(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body.encode())

    http = httpx2.Client(transport=httpx2.MockTransport(respond))
    client = openai.OpenAI(api_key="x", base_url="http://here", http_client=http, max_retries=0)
    with client, client.responses.stream(model="m", input="Hello") as stream:
        received = list(stream)
        if answer.generation.finish_reason == "stop":  # the client takes no other for final
            assert stream.get_final_response().output_text == answer.generation.text
    pieces = [event.delta for event in received if event.type == "response.output_text.delta"]
    assert "".join(pieces) == answer.generation.text


def test_an_error_amid_a_stream() -> None:
    writer = ResponseEvents(
        Response("m", ResponseRequest.model_validate({"input": "Hello"}).settings(SamplingParams()))
    )
    begun = len(writer.begin())
    (event,) = writer.fail("the server is shutting down")
    EVENT.validate_python(event)
    assert (event["type"], event["sequence_number"]) == ("response.failed", begun)
    assert event["response"]["error"]["message"] == "the server is shutting down"
    assert event["response"]["status"] == "failed"
