"""Chats: the ids are mistral-common's, and refusals are errors of one line."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from tokenizer.strategies import TOOL, TOOL_CHAT, Message, assistant, conversations, names, user
from tokenizer.vocabularies import from_file, reference

from mistral_portable.errors import TokenizerError

HI = [user("Hi"), assistant("Yo"), user("Again")]


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("v1", "1 733 16289 28793 15359 733 28748 16289 28793 627 28709 2 733 16289 28793 9706 733 28748 16289 28793"),
        ("v2", "1 3 16127 4 1395 29477 2 3 10474 4"),
        ("v3", "1 3 16127 4 1395 29477 2 3 10474 4"),
        ("v7", "1 3 16127 4 1395 29477 2 3 10474 4"),
        ("tekken 240718", "1 3 37133 4 57025 2 3 50975 4"),
    ],
)
def test_golden_ids(name: str, tokens: str) -> None:
    assert from_file(name).chat(HI) == [int(token) for token in tokens.split()]


@given(names, conversations())
def test_ids_are_those_of_mistral_common(name: str, messages: list[Message]) -> None:
    request: ChatCompletionRequest[Any] = ChatCompletionRequest(messages=messages)
    assert from_file(name).chat(messages) == reference(name).encode_chat_completion(request).tokens


@pytest.mark.parametrize("name", ["v2", "v3", "v7", "tekken 240718"])
def test_tools_are_those_of_mistral_common(name: str) -> None:
    request: ChatCompletionRequest[Any] = ChatCompletionRequest.from_openai(TOOL_CHAT, [TOOL])
    tokens = from_file(name).chat(TOOL_CHAT, tools=[TOOL])
    assert tokens == reference(name).encode_chat_completion(request).tokens
    assert tokens != from_file(name).chat(TOOL_CHAT)


@given(names, st.text(max_size=8).map("The answer".__add__))
def test_a_final_assistant_message_begins_the_answer(name: str, beginning: str) -> None:
    tokenizer = from_file(name)
    open_ended = tokenizer.chat([user("Hi"), assistant(beginning)])
    closed = tokenizer.chat([user("Hi"), assistant(beginning), user("Again")])
    assert tokenizer.eos_id not in open_ended
    assert closed[: len(open_ended) + 1] == [*open_ended, tokenizer.eos_id]


def test_neighbours_of_one_role_are_joined() -> None:
    """This is mistral-common's rule; Hugging Face's Jinja templates refuse such a chat."""
    tokenizer = from_file("v3")
    assert tokenizer.chat([user("Hi"), user("there")]) == tokenizer.chat([user("Hi\n\nthere")])


def test_the_callers_messages_are_left_alone() -> None:
    messages = [user("Hi"), assistant("Yo")]
    from_file("v3").chat(messages, tools=[TOOL])
    assert messages == [user("Hi"), assistant("Yo")]


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": {}, **fields}}


def assistant_calls(function: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "abcdefghi", "function": function}]}


@pytest.mark.parametrize(
    ("messages", "tools", "reason"),
    [
        ([], None, "conversation is empty"),
        (["Hi"], None, "message 0 is 'Hi'; pass a mapping"),
        ([user("Hi"), {"role": "robot", "content": "Yo"}], None, "message 1 has the role 'robot'; roles are system"),
        ([{"content": "Hi"}], None, "message 0 has the role None"),
        ([user(3)], None, "message 0 has the content 3; pass a string"),
        ([user(None)], None, "message 0 has the content None"),
        ([{"role": "user"}], None, "message 0 has the content None"),
        ([assistant("Yo")], None, "must start with a user message"),
        ([user("Hi"), assistant("")], None, "chat template v3"),
        ([user("Hi"), {"role": "tool", "content": "rain"}], None, "tool_call_id"),
        ([user("\ud83e")], None, "chat template v3"),
        ([user("Hi")], [{}], "tool 0 has the function None"),
        ([user("Hi")], ["weather"], "tool 0 is 'weather'; pass a mapping"),
        ([user("Hi")], [{"type": "function", "function": {"name": "a b", "parameters": {}}}], "Function name was a b"),
        ([user("Hi")], [TOOL, {**TOOL, "type": "x"}], "tool 1: Tool.type: .*, got 'x'"),
        ([user("Hi")], [TOOL, function(parameters={"type": 5})], r"tool 1: parameters.type is no JSON schema: 5 "),
        ([user("Hi")], [function(parameters={"required": [5]})], r"tool 0: parameters.required\[0\] is no JSON schema"),
        ([user("Hi")], [function(name="a" * 10**5)], "Function name was aaa"),
        ([user("Hi"), {"role": "assistant", "content": None, "tool_calls": [3]}, user("?")], None, "tool_calls"),
        ([user("Hi"), assistant_calls({"arguments": "{}"})], None, "message 1 call 0: .*name: Field required, got"),
    ],
)
def test_what_is_refused(messages: list[Any], tools: list[Any] | None, reason: str) -> None:
    with pytest.raises(TokenizerError, match=reason) as caught:
        from_file("v3").chat(messages, tools=tools)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


def test_v1_has_no_tools() -> None:
    with pytest.raises(TokenizerError, match="v1"):
        from_file("v1").chat(TOOL_CHAT)
