"""Conversations give the results of transformers' class, or the same exception."""

from typing import Any

import pytest
from documented.tokenizers import NAMES, ours, outcome, same, theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer.strategies import CALL, TOOL, TOOL_CHAT, Message, assistant, conversations, texts, user

HI = [user("Hi"), assistant("Yo"), user("Again")]
GOLDEN = {
    "v1": "1 733 16289 28793 15359 733 28748 16289 28793 627 28709 2 733 16289 28793 9706 733 28748 16289 28793",
    "v3": "1 3 16127 4 1395 29477 2 3 10474 4",
}
MODES = st.sampled_from(["test", "finetuning"])
PARTS = st.lists(texts.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=3)
MESSAGES = (
    st.builds(user, texts | PARTS)
    | st.builds(assistant, texts)
    | st.builds(lambda text: {"role": "system", "content": text}, texts)
)
FUNCTIONS = st.builds(
    lambda name, about, kind: {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {"type": "object", "properties": {"city": {"type": kind}}},
        },
    },
    st.sampled_from(["weather", "time_of_day", "a b"]),
    texts,
    st.sampled_from(["string", "integer"]),
)
CALLS = [
    TOOL_CHAT,
    TOOL_CHAT[:2],
    [*TOOL_CHAT, assistant("Rain."), user("Thanks")],
    [*TOOL_CHAT[:2], {**TOOL_CHAT[2], "tool_call_id": "x"}],
    [user("?"), {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "bcdefghij"}]}],
]
CHATS = conversations() | st.lists(MESSAGES, min_size=1, max_size=5) | st.sampled_from(CALLS)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_ids(name: str) -> None:
    assert ours(name).apply_chat_template(HI) == [int(id) for id in GOLDEN[name].split()]


@settings(max_examples=150)
@given(st.sampled_from(NAMES), MODES, CHATS, st.none() | st.lists(FUNCTIONS, max_size=2), st.booleans(), st.booleans())
def test_chats(
    name: str, mode: str, chat: list[Message], tools: list[Any] | None, goes_on: bool, tokenize: bool
) -> None:
    options: dict[str, Any] = {
        "tools": tools,
        "continue_final_message": goes_on,
        "tokenize": tokenize,
        "return_dict": False,
    }
    expected = outcome(lambda: theirs(name, mode).apply_chat_template(chat, **options))
    assert outcome(lambda: ours(name, mode).apply_chat_template(chat, **options)) == expected


@settings(max_examples=100)
@given(
    st.sampled_from(NAMES),
    conversations() | st.lists(conversations(), min_size=1, max_size=3),
    st.fixed_dictionaries(
        {"return_dict": st.booleans()},
        optional={
            "padding": st.sampled_from([False, True, "longest", "max_length"]),
            "truncation": st.booleans() | st.just("longest_first"),
            "max_length": st.none() | st.integers(1, 40),
            "return_tensors": st.sampled_from([None, "np", "pt"]),
        },
    ),
)
def test_lengths(name: str, chats: Any, options: dict[str, Any]) -> None:
    def call(tokenizer: Any) -> Any:
        result = tokenizer.apply_chat_template(chats, **options)
        return result if options["return_dict"] else {"input_ids": result}

    same(lambda: call(ours(name)), lambda: call(theirs(name)))


def test_the_beginning_of_an_answer() -> None:
    tokenizer = ours("v3")
    chat = [user("Hi"), assistant("The answer")]
    open_ended = tokenizer.apply_chat_template(chat, continue_final_message=True)
    assert tokenizer.eos_token_id not in open_ended
    assert tokenizer.decode(open_ended, skip_special_tokens=True).endswith("The answer")


def test_the_callers_messages_are_left_alone() -> None:
    messages = [user("Hi"), assistant("Yo")]
    ours("v3").apply_chat_template(messages, tools=[TOOL], continue_final_message=True)
    assert messages == [user("Hi"), assistant("Yo")]
