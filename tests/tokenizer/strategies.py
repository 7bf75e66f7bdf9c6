"""Hypothesis strategies for texts and chats."""

from typing import Any

from hypothesis import strategies as st
from tokenizer.vocabularies import FILES

Message = dict[str, Any]

FRAGMENTS = ["Hello", " there", "  ", "\n\n", "\r\n", "\t", "\0", "\x7f", "3.14", "2024", "<s>", "[INST]", "<0x41>"]
FRAGMENTS += ["é", "e\u0301", "नि", "漢字", "🦊", "👩\u200d👧", "🇫🇷", "\ufeff", "\ufffd", "\U0010ffff"]
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=8), max_size=12).map("".join)
names = st.sampled_from(sorted(FILES))


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any) -> Message:
    return {"role": "assistant", "content": content}


TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Say it", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
TOOL_CHAT = [
    user("Weather?"),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "rain", "tool_call_id": "abcdefghi"},
]


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Draw alternating messages of user and assistant, with or without a system prompt; the last is the user's."""
    contents = draw(st.lists(st.text(min_size=1, max_size=8).map("a".__add__), min_size=1, max_size=5))
    messages = [(user, assistant)[index % 2](text) for index, text in enumerate(contents)]
    if len(messages) % 2 == 0:
        messages.append(user("?"))
    return draw(st.sampled_from([[], [{"role": "system", "content": "Be brief."}]])) + messages
