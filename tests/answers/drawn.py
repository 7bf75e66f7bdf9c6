"""Drawn answers, written by mistral-common's encoder, and what its parsers of whole lists make of them."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from answers.versions import WITH_REASONING
from hypothesis import strategies as st
from mistral_common.experimental.think import _split_content_and_think_chunks
from mistral_common.experimental.tools import _decode_tool_calls, _split_content_and_tool_calls
from mistral_common.protocol.instruct.chunk import TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import AssistantMessage
from mistral_common.protocol.instruct.tool_calls import FunctionCall, ToolCall

from mistral_portable.answers import ChatParser, Delta, Parts, join_deltas
from mistral_portable.tokenizer import Tokenizer
from mistral_portable.tokenizer.common import CommonTokenizer

TRICKY = [
    "[TOOL_CALLS]",
    "[ARGS]",
    "[/THINK]",
    '"}',
    "\\",
    '\\"',
    "}]",
    "{",
    "\n",
    "🦊",
    "é",
    "漢",
    "\ufffd",
    "\0",
    "\\u0041",
]
# "▁" is how sentencepiece writes a space: it cannot tell the two.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
texts = st.lists(st.sampled_from(TRICKY) | st.text(characters, max_size=6), max_size=6).map("".join)
names = st.from_regex(r"[a-zA-Z0-9_-]{1,20}", fullmatch=True)
call_ids = st.from_regex(r"[a-zA-Z0-9]{9}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, values, max_size=4)


@dataclass(frozen=True)
class Drawn:
    """An answer. ids: of its calls, in place of those that the version does not write."""

    content: str
    reasoning: str
    calls: tuple[tuple[str, str, dict[str, Any]], ...]

    def tokens(self, tokenizer: Tokenizer, *, with_ids: bool = True) -> list[int]:
        """Return the answer's ids, without the one that ends it."""
        calls = [
            ToolCall(id=id if with_ids else "null", function=FunctionCall(name=name, arguments=json.dumps(arguments)))
            for id, name, arguments in self.calls
        ]
        content: Any = self.content or None
        if self.reasoning:
            content = [ThinkChunk(thinking=self.reasoning), *([TextChunk(text=self.content)] if self.content else [])]
        message = AssistantMessage(content=content, tool_calls=calls or None, prefix=True)
        assert isinstance(tokenizer, CommonTokenizer)
        encoder: Any = tokenizer.mistral.instruct_tokenizer
        written: list[int] = encoder.encode_assistant_message(message, False)
        return written


def asks_for_ids(version: str) -> bool:
    """Whether mistral-common's encoder asks for ids."""
    return version.startswith(("v13", "v15"))


@st.composite
def answers(draw: st.DrawFn, version: str) -> Drawn:
    """Draw an answer that a version can write: with something in it."""
    begin = draw(st.sampled_from(["", "Let me see."])) + draw(texts)
    ids = draw(st.lists(call_ids, max_size=3, unique=True)) if version != "v1" else []
    calls = tuple((id, draw(names), draw(objects)) for id in ids)
    reasoning = draw(texts) if version in WITH_REASONING else ""
    content = begin.strip(" ") if not calls or version.startswith(("v7", "v1")) else ""
    return Drawn(content if content or reasoning or calls else "Hi", reasoning, calls)


def parse(tokenizer: Tokenizer, tokens: list[int], prompt: list[int] | None = None) -> list[Delta]:
    """Return all deltas of an answer."""
    parser = ChatParser(tokenizer, _prompt(tokenizer) if prompt is None else prompt)
    return [delta for token in tokens for delta in parser.push(token)] + parser.flush()


@cache
def _prompt(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.chat([{"role": "user", "content": "Hi"}])


def parts(tokenizer: Tokenizer, tokens: list[int]) -> Parts:
    """Return what the deltas of an answer add up to."""
    return join_deltas(parse(tokenizer, tokens))


def whole(tokenizer: Tokenizer, tokens: list[int]) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    """Return content, reasoning and calls (name, arguments) as mistral-common finds them in the whole list.

    A group of tokens behind [TOOL_CALLS] in which it finds no calls is content.
    """
    assert isinstance(tokenizer, CommonTokenizer)
    inner = tokenizer.mistral.instruct_tokenizer.tokenizer
    marker = tokenizer.control_id("[TOOL_CALLS]")
    begin, groups = (tokens, ()) if marker is None else _split_content_and_tool_calls(tokens, marker)
    think, end_think = tokenizer.control_id("[THINK]"), tokenizer.control_id("[/THINK]")
    chunks = [(begin, False)]
    if think is not None and end_think is not None:
        chunks = _split_content_and_think_chunks(begin, think, end_think)
    content = "".join(tokenizer.decode(chunk) for chunk, thinks in chunks if not thinks)
    reasoning = "".join(tokenizer.decode(chunk) for chunk, thinks in chunks if thinks)
    calls = list[tuple[str, dict[str, Any]]]()
    for group in groups:
        try:
            found = _decode_tool_calls([group], inner)
        except ValueError:
            content += tokenizer.decode(group)
        else:
            calls += [(call.function.name, json.loads(call.function.arguments)) for call in found]
    return content, reasoning, calls
