"""Reasoning between <think> and </think>, as text: apart from content, however the text is cut into tokens."""

import re
from typing import Any

import pytest
from answers.drawn import parse
from answers.scripted import script, written
from answers.versions import VERSIONS, WITH_REASONING, tokenizer_of
from hypothesis import given
from hypothesis import strategies as st

import mistral_portable as mp
from mistral_portable.answers import Content, Parts, Reasoning, join_deltas
from mistral_portable.tokenizer import Tokenizer

ASKS = {"role": "system", "content": "First think:\n<think>\nyour thoughts\n</think>\nthen answer."}
HELLO = {"role": "user", "content": "Hello"}
SPELLING = [version for version in VERSIONS if version not in (*WITH_REASONING, "v1")]
PIECES = ["<think>", "</think>", "<", "</", "think>", " ", "\n", "Hm", ".", "é"]


def parsed(tokenizer: Tokenizer, messages: list[Any], *answer: str) -> Parts:
    """The parts of an answer whose texts are encoded piece by piece."""
    return join_deltas(parse(tokenizer, written(tokenizer, *answer), tokenizer.chat(messages)))


def expected(text: str) -> tuple[str, str]:
    """Reasoning and content of a whole text."""
    found = re.fullmatch(r"\s*<think>(.*?)(?:</think>(.*))?", text, re.DOTALL)
    if found is None:
        return "", text
    reasoning = found[1].lstrip() if found[2] is None else found[1].strip()
    return reasoning, (found[2] or "").lstrip()


@pytest.mark.parametrize("version", SPELLING)
def test_reasoning_is_apart_from_content(version: str) -> None:
    found = parsed(tokenizer_of(version), [ASKS, HELLO], "<think>\nHm. Well.\n</think>\n\nYo <think> x </think>")
    assert (found.reasoning, found.text) == ("Hm. Well.", "Yo <think> x </think>")


@given(st.sampled_from(["v3", "v7", "v11"]), st.lists(st.sampled_from(PIECES), min_size=1, max_size=10))
def test_pieces_add_up_to_the_parts_of_the_whole(version: str, pieces: list[str]) -> None:
    tokenizer = tokenizer_of(version)
    tokens = [token for piece in pieces for token in tokenizer.encode(piece, bos=False)]
    found = join_deltas(parse(tokenizer, tokens, tokenizer.chat([ASKS, HELLO])))
    plain = join_deltas(parse(tokenizer, tokens, tokenizer.chat([HELLO])))
    assert (plain.reasoning, plain.text) == ("", tokenizer.decode(tokens))
    assert (found.reasoning, found.text) == expected(plain.text)


@pytest.mark.parametrize("version", SPELLING)
def test_reasoning_that_the_prompt_has_begun_goes_on(version: str) -> None:
    for begun, parts in (
        ("<think>\nHm", ("Well.", "Yo")),
        ("<think>Hm</think>", ("", "Well.</think>Yo")),
        ("Yo", ("", "Well.</think>Yo")),
    ):
        messages = [ASKS, HELLO, {"role": "assistant", "content": begun}]
        found = parsed(tokenizer_of(version), messages, "Well.", "</think>", "Yo")
        assert (found.reasoning.replace(" ", ""), found.text.replace(" ", "")) == parts


def test_without_being_asked_for_markers_are_text() -> None:
    for version, messages in (("v7", [HELLO]), ("v13", [ASKS, HELLO]), ("v1", [ASKS, HELLO])):
        found = parsed(tokenizer_of(version), messages, "<think>Hm</think>Yo")
        assert (found.reasoning, found.text) == ("", "<think>Hm</think>Yo")


def test_calls_behind_reasoning() -> None:
    call = '[{"name": "f", "arguments": {}, "id": "abcdefgh1"}]'
    for thought in ("<think>Hm</think>", "<think>Hm", "<think>Hm</thi"):
        found = parsed(tokenizer_of("v7"), [ASKS, HELLO], thought, "[TOOL_CALLS]", call)
        assert [call.name for call in found.tool_calls] == ["f"]
        assert (found.reasoning, found.text) == (thought.removeprefix("<think>").removesuffix("</think>"), "")


@pytest.mark.parametrize("version", SPELLING)
def test_reasoning_that_comes_back_is_text_again(version: str) -> None:
    tokenizer = tokenizer_of(version)
    said = {"role": "assistant", "content": "Yo", "reasoning_content": "Hm"}
    text = {"role": "assistant", "content": "<think>\nHm\n</think>\n\nYo"}
    assert tokenizer.chat([ASKS, HELLO, said, HELLO]) == tokenizer.chat([ASKS, HELLO, text, HELLO])
    with pytest.raises(mp.MistralPortableError, match="has reasoning"):
        tokenizer.chat([HELLO, said, HELLO])


def test_a_stream_has_reasoning_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with mp.load("tiny", backend="reference") as model:
        answer = written(model.tokenizer, "<think>\nred.\n</think>\n\nthe ball")
        script(monkeypatch, model.tokenizer.chat([ASKS, HELLO]), [*answer, model.tokenizer.eos_id])
        deltas = list(model.stream([ASKS, HELLO], temperature=0).deltas())
        whole = model.chat([ASKS, HELLO], temperature=0)
    kinds = [type(delta) for delta in deltas]
    assert kinds == sorted(kinds, key=[Reasoning, Content].index)
    assert (whole.reasoning, whole.text) == ("red.", "the ball")
    assert join_deltas(deltas) == Parts(whole.text, whole.reasoning)
