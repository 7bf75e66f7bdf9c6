"""Bodies of /v1/responses: what they become, and what is refused with the name of the field."""

from typing import Any

import pytest

from mistral_portable.answers import named
from mistral_portable.api import check_body
from mistral_portable.errors import InputError
from mistral_portable.openai.responses import ResponseRequest

TOOL = {"type": "function", "name": "weather", "description": "It is cold", "parameters": {"type": "object"}}


def ask(**fields: Any) -> Any:
    return check_body(ResponseRequest, {"input": "Hello", **fields}).to_conversation()


def test_a_request_becomes_a_conversation() -> None:
    asked = ask(
        model="m",
        instructions="Be kind",
        max_output_tokens=9,
        temperature=0,
        top_p=0.5,
        tools=[TOOL],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "string"}}, "verbosity": "low"},
        store=False,
        stream=True,
        user="tom",
        include=["reasoning.encrypted_content"],
        reasoning={"effort": "low"},
    )
    assert asked.messages == [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hello"}]
    assert (asked.params.max_tokens, asked.params.temperature, asked.params.top_p) == (9, 0, 0.5)
    function = {"name": "weather", "description": "It is cold", "parameters": {"type": "object"}}
    assert asked.tools == [{"type": "function", "function": function}]
    assert (asked.tool_choice, asked.parallel) == (named("weather"), False)
    assert (asked.schema, asked.stream, asked.user) == ({"type": "string"}, True, "tom")
    assert ask().params.max_tokens is None
    assert ask(tools=[TOOL], tool_choice="none").tool_choice == "none"
    assert ask(text={"format": {"type": "json_object"}}).schema == {"type": "object"}


def test_items_of_an_answer_become_one_message() -> None:
    items = [
        {"role": "developer", "content": "Be kind"},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "How "}, {"type": "input_text", "text": "cold?"}
        ]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "Hmm"}]},
        {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": [
            {"type": "output_text", "text": "I look", "annotations": []}
        ]},
        {"type": "function_call", "id": "f", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "wind", "arguments": '{"n":1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "4 degrees"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "calm"}]},
        {"type": "reasoning", "id": "r2", "summary": [], "encrypted_content": "x"},
        {"role": "assistant", "content": "Cold"},
        {"role": "assistant", "content": "and calm"},
        {"type": "reasoning", "id": "r3", "summary": [], "encrypted_content": "x"},
        {"role": "user", "content": "Thanks"},
    ]  # fmt: skip
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
        {"id": "c2", "type": "function", "function": {"name": "wind", "arguments": '{"n":1}'}},
    ]
    assert ask(input=items).messages == [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "How cold?"},
        {"role": "assistant", "content": "I look", "reasoning_content": "Hmm", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "4 degrees"},
        {"role": "tool", "tool_call_id": "c2", "content": "calm"},
        {"role": "assistant", "content": "Cold"},
        {"role": "assistant", "content": "and calm"},
        {"role": "user", "content": "Thanks"},
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": None}, "input: Field required"),
        ({"input": []}, "input: "),
        ({"input": [{"role": "king", "content": "x"}]}, r"input.0.role: .*'king'"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, r"input.0: .*item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, r"input.0.content.0: .*input_image"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]}, r"input.0.content.0.text: .*5"),
        ({"previous_response_id": "resp_1"}, "previous_response_id: .*keeps no answers"),
        ({"conversation": "conv_1"}, "conversation: .*keeps no answers"),
        ({"store": True}, "store: .*set it to false"),
        ({"background": True}, "background: "),
        ({"truncation": "auto"}, "truncation='auto'"),
        ({"top_logprobs": 2}, "top_logprobs=2"),
        ({"tools": [{"type": "web_search"}]}, r"tools.0.type: .*web_search"),
        ({"tool_choice": "required"}, "tool_choice: .*give tools"),
        ({"max_output_tokens": 0}, "max_output_tokens: .*0"),
        ({"temperature": 1000}, "temperature=1000"),
    ],
)
def test_what_is_refused(fields: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        ask(**fields)
    assert "\n" not in str(caught.value)
