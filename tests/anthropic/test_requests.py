"""Bodies of Anthropic's API: what they become, and what is refused with the name of the field."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.answers import named
from mistral_portable.anthropic.requests import CountRequest, MessagesRequest
from mistral_portable.api import check_body
from mistral_portable.errors import InputError

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"name": "weather", "description": "It is cold", "input_schema": {"type": "object"}}


def ask(**fields: Any) -> Any:
    return check_body(MessagesRequest, {"max_tokens": 9, "messages": HELLO, **fields}).to_conversation()


def test_a_request_becomes_a_conversation() -> None:
    asked = ask(
        model="m",
        system=[{"type": "text", "text": "Be kind", "cache_control": {"type": "ephemeral"}}],
        stop_sequences=["END"],
        temperature=0.5,
        top_k=3,
        top_p=0.25,
        stream=True,
        metadata={"user_id": "tom"},
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": {"type": "string"}}},
        thinking={"type": "adaptive"},
    )
    assert asked.messages == [{"role": "system", "content": "Be kind"}, *HELLO]
    assert (asked.params.max_tokens, asked.params.temperature, asked.params.stop) == (9, 0.5, ("END",))
    assert (asked.params.top_k, asked.params.top_p) == (3, 0.25)
    function = {"name": "weather", "description": "It is cold", "parameters": {"type": "object"}}
    assert asked.tools == [{"type": "function", "function": function}]
    assert (asked.tool_choice, asked.parallel) == (named("weather"), False)
    assert (asked.schema, asked.user, asked.stream, asked.model) == ({"type": "string"}, "tom", True, "m")


def test_a_turn_of_an_agent() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "How"}, {"type": "text", "text": "cold?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hmm", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look"},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Well?"},
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "4 degrees"},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no wind"}],
                },
            ],
        },
    ]
    call = {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
    assert ask(messages=messages).messages == [
        {"role": "user", "content": "How\n\ncold?"},
        {"role": "assistant", "content": "I look", "reasoning_content": "Hmm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "4 degrees"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: no wind"},
        {"role": "user", "content": "Well?"},
    ]


def test_a_changing_header_is_dropped() -> None:
    system = [{"type": "text", "text": text} for text in ("x-anthropic-billing-header: 17", "Be kind", "Be brief")]
    assert ask(system=system).messages == [{"role": "system", "content": "Be kind\n\nBe brief"}, *HELLO]
    assert ask(system=system[:1]).messages == HELLO


@pytest.mark.parametrize(
    ("choice", "tools", "expected"),
    [(None, 1, "auto"), ({"type": "auto"}, 1, "auto"), ({"type": "any"}, 1, "any"), ({"type": "none"}, 0, "none")],
)
def test_tool_choice(choice: Any, tools: int, expected: str) -> None:
    asked = ask(tools=[TOOL], tool_choice=choice)
    assert (len(asked.tools), asked.tool_choice) == (tools, expected)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"max_tokens": 0}, "max_tokens: .*got 0"),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "king", "content": "x"}]}, r"messages.0.role: .*'king'"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, r"messages.0.content.0.text: .*5"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"messages.0.content.0: .*'image'"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text"}]}],
                    }
                ]
            },
            r"messages.0.content.0.content.0.text: Field required",
        ),
        ({"temperature": "hot"}, "temperature: .*'hot'"),
        ({"temperature": -1}, "temperature=-1"),
        ({"system": 5}, "system: "),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences: "),
        ({"stop_sequences": ["x" * 257]}, "stop_sequences.0: "),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type: .*web_search"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: .*give tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice: 'x'.*weather"),
    ],
)
def test_what_is_refused(fields: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        ask(**fields)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "role", "content", "name", "input", "id", "tool_use_id", "input_schema"]),
            inner | st.sampled_from(["text", "tool_use", "tool_result", "user", "assistant", "thinking"]),
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(sorted(MessagesRequest.model_fields)), JSON))
def test_any_body_is_understood_or_refused_in_one_line(body: Any) -> None:
    for kind in (MessagesRequest, CountRequest):
        if (fault := _refusal(kind, body)) is not None:
            assert "\n" not in fault
            assert len(fault) < 3000


def _refusal(kind: type[CountRequest], body: Any) -> str | None:
    """Why a body is refused; None if it is understood."""
    try:
        request = check_body(kind, body)
        request.chat()
        if isinstance(request, MessagesRequest):
            request.to_conversation()
    except InputError as error:
        return str(error)
    return None
