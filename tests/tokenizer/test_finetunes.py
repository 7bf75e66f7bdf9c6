"""Finetunes' tokenizers and chats: ids equal transformers' AutoTokenizer."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer.finetunes import CHATML, KINDS, TEMPLATES, write_finetune
from tokenizer.strategies import FRAGMENTS, TOOL, TOOL_CHAT, Message, assistant, conversations, user

from mistral_portable.errors import InputError, TokenizerError
from mistral_portable.tokenizer import Tokenizer, load_tokenizer
from mistral_portable.tokenizer.to_gguf import gguf_vocabulary

NAMES = ["<|im_start|>", "<|im_end|>", "<left>", "<right>", " word ", "words", "<n>", "</s>", "<unk>", "\u2581", "<|im"]
texts = st.lists(st.sampled_from(FRAGMENTS + NAMES) | st.text(max_size=8), max_size=12).map("".join)
kinds = st.sampled_from(KINDS)
pairs = st.sampled_from([*((kind, "chatml") for kind in KINDS), *(("tekken", name) for name in TEMPLATES)])


@cache
def pair(kind: str, template: str = "chatml") -> tuple[Tokenizer, Any]:
    """Our tokenizer and transformers', of one folder."""
    from transformers import AutoTokenizer

    folder = Path(mkdtemp())
    source = write_finetune(folder, kind, TEMPLATES[template])
    return load_tokenizer(source), AutoTokenizer.from_pretrained(folder)


@cache
def from_gguf(kind: str) -> Tokenizer:
    return load_tokenizer(gguf_vocabulary(write_finetune(Path(mkdtemp()), kind, CHATML)))


@given(kinds, texts, st.booleans())
def test_equal_ids_of_texts(kind: str, text: str, bos: bool) -> None:
    ours, theirs = pair(kind)
    assert ours.encode(text, bos=bos) == theirs(text, add_special_tokens=bos).input_ids


@given(kinds, texts)
def test_equal_texts_of_ids(kind: str, text: str) -> None:
    ours, theirs = pair(kind)
    ids = ours.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    stream = ours.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == ours.decode(ids)


@given(pairs, conversations())
def test_equal_chats(names: tuple[str, str], messages: list[Message]) -> None:
    ours, theirs = pair(*names)
    assert ours.chat(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


@given(pairs, conversations(), texts.map("b".__add__))
def test_equal_chats_that_go_on(names: tuple[str, str], messages: list[Message], text: str) -> None:
    ours, theirs = pair(*names)
    messages = [*messages, assistant(text)]
    expected = theirs.apply_chat_template(messages, continue_final_message=True)["input_ids"]
    assert ours.chat(messages) == expected


@pytest.mark.parametrize("kind", ["listed", "tekken"])
def test_equal_chats_with_tools(kind: str) -> None:
    ours, theirs = pair(kind, "tools")
    call: Any = TOOL_CHAT[1]["tool_calls"][0]
    parsed = {**call, "function": {**call["function"], "arguments": {"city": "Paris"}}}
    messages = [TOOL_CHAT[0], {**TOOL_CHAT[1], "tool_calls": [parsed]}, TOOL_CHAT[2]]
    expected = theirs.apply_chat_template(messages, tools=[TOOL], add_generation_prompt=True)["input_ids"]
    assert ours.chat(messages, tools=[TOOL]) == expected
    assert ours.chat(TOOL_CHAT, tools=[TOOL]) == expected  # arguments as a text


@given(st.sampled_from(["older files", "listed", "tokenizer.json", "tekken"]), texts)
def test_a_gguf_vocabulary_gives_the_same_ids(kind: str, text: str) -> None:
    assert from_gguf(kind).encode(text) == pair(kind)[0].encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_properties(kind: str) -> None:
    ours, theirs = pair(kind)
    assert ours.eos_id == theirs.eos_token_id == ours.control_id("<|im_end|>")
    assert (ours.bos_id, ours.pad_id, ours.vocab_size) == (1, theirs.pad_token_id, len(theirs))
    assert ours.end_ids == {ours.eos_id}
    assert ours.is_special(ours.eos_id)
    start = theirs.convert_tokens_to_ids("<|im_start|>")
    shown = theirs.decode([start], skip_special_tokens=True).encode()
    assert (ours.is_special(start), ours.token_bytes(start)) == (not shown, shown)


def test_the_effort_of_reasoning_is_told_to_a_template_that_knows_it(tmp_path: Path) -> None:
    source = write_finetune(tmp_path, "listed", "{{ messages[0].content }}{{ reasoning_effort or 'own' }}")
    tokenizer = load_tokenizer(source)
    written = [tokenizer.decode(tokenizer.chat([user("a ")], reasoning_effort=effort)) for effort in (None, "high")]
    assert written == ["a own", "a high"]
    with pytest.raises(TokenizerError, match="does not know reasoning_effort; leave it out"):
        load_tokenizer(source, CHATML).chat([user("a")], reasoning_effort="high")


def test_named_templates(tmp_path: Path) -> None:
    """tool_use is for chats with tools; a choice of the caller's comes before."""
    source = write_finetune(tmp_path, "listed", CHATML)
    (tmp_path / "chat_template.jinja").write_text("A")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("B")
    (tmp_path / "mine.txt").write_text("C{{ messages[0].content }}")

    def written(choice: Any = None, **options: Any) -> str:
        tokenizer = load_tokenizer(source, choice)
        return tokenizer.decode(tokenizer.chat([user("x")], **options))

    assert (written(), written(tools=[TOOL]), written("tool_use")) == ("A", "B", "B")
    assert (written(tmp_path / "mine.txt"), written("D{{ 1 + 1 }}")) == ("Cx", "D2")
    assert load_tokenizer(source, "mistral").kind == "sentencepiece"
    with pytest.raises(InputError, match=r"'nowhere' is no file .* not one of mistral, default, tool_use"):
        written("nowhere")


def test_without_a_template_a_chat_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_finetune(tmp_path, "older files", ""))
    assert not tokenizer.chats
    with pytest.raises(TokenizerError, match="no chat template: give one"):
        tokenizer.chat([user("x")])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@given(data=st.data())
def test_damaged_files_are_refused_or_work(name: str, data: st.DataObject) -> None:
    folder = Path(mkdtemp())
    source = write_finetune(folder, "tekken", CHATML)
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(32, 126))
    (folder / name).write_bytes(content)
    try:
        tokenizer = load_tokenizer(source)
    except TokenizerError:
        return
    tokenizer.decode(tokenizer.encode("Hello [INST] é🦊"))
