"""The vocabulary in a GGUF file gives the same ids as the file from which it was made."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer.strategies import TOOL, TOOL_CHAT, Message, conversations, names, texts
from tokenizer.vocabularies import FILES, TINY, from_file, from_gguf, gguf_vocabulary

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer import GGUFVocabulary, TokenizerFile, load_tokenizer


@given(names, texts, st.sampled_from(["", "[REFERENCE_DOC_0]"]))
def test_equal_ids_and_text(name: str, text: str, user_defined: str) -> None:
    file, gguf = from_file(name), from_gguf(name)
    tokens = file.encode(text + user_defined)
    assert gguf.encode(text + user_defined) == tokens
    assert gguf.decode(tokens) == file.decode(tokens)


@given(names, st.data())
def test_equal_tokens(name: str, data: st.DataObject) -> None:
    file, gguf = from_file(name), from_gguf(name)
    id = data.draw(st.integers(0, file.vocab_size - 1))
    assert gguf.token_bytes(id) == file.token_bytes(id)
    assert gguf.is_special(id) == file.is_special(id)
    assert gguf.decode([id], skip_special_tokens=False) == file.decode([id], skip_special_tokens=False)


@given(names, conversations())
def test_equal_chats(name: str, messages: list[Message]) -> None:
    assert from_gguf(name).chat(messages) == from_file(name).chat(messages)


@pytest.mark.parametrize("name", FILES)
def test_equal_properties(name: str) -> None:
    file, gguf = from_file(name), from_gguf(name)
    for attribute in ("kind", "version", "vocab_size", "bos_id", "eos_id", "pad_id"):
        assert getattr(gguf, attribute) == getattr(file, attribute)


@pytest.mark.parametrize("name", ["v2", "v3", "v7", "tekken 240718"])
def test_equal_tool_chats(name: str) -> None:
    assert from_gguf(name).chat(TOOL_CHAT, tools=[TOOL]) == from_file(name).chat(TOOL_CHAT, tools=[TOOL])


TINY_VOCABULARY = gguf_vocabulary(TINY)


def test_the_embedded_model() -> None:
    file = load_tokenizer(TokenizerFile(TINY))
    gguf = load_tokenizer(TINY_VOCABULARY)
    assert (gguf.version, gguf.encode("Hello 🦊")) == ("v3", file.encode("Hello 🦊"))


def test_add_bos_and_further_ends() -> None:
    """Texts have no `<s>` where the file says so; chats have it."""
    tokenizer = load_tokenizer(replace(TINY_VOCABULARY, add_bos=False, eos_token_id=5, ends=(6,)))
    assert tokenizer.encode("Hi") == tokenizer.encode("Hi", bos=False)
    assert tokenizer.chat([{"role": "user", "content": "Hi"}])[0] == tokenizer.bos_id
    assert tokenizer.eos_id == 5
    assert tokenizer.end_ids == {5, 6}


@given(texts)
def test_without_the_space_prefix_a_first_space_is_the_texts_own(text: str) -> None:
    tokenizer = load_tokenizer(replace(TINY_VOCABULARY, add_space_prefix=False))
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\u2581", " ")


@given(st.data())
def test_a_damaged_vocabulary_is_refused_or_works(data: st.DataObject) -> None:
    vocabulary = replace(TINY_VOCABULARY, chat_template=data.draw(st.sampled_from([None, "{{ messages }}"])))
    damage = {"tokens": st.binary(max_size=4), "scores": st.floats(width=32), "types": st.integers(0, 7)}
    for name in data.draw(st.lists(st.sampled_from(sorted(damage)), min_size=1, max_size=3)):
        values: list[Any] = list(getattr(vocabulary, name))
        values[data.draw(st.integers(0, 300))] = data.draw(damage[name])
        change: Any = {name: tuple(values)}
        vocabulary = replace(vocabulary, **change)
    try:
        tokenizer = load_tokenizer(vocabulary)
    except TokenizerError:
        return
    tokenizer.decode(tokenizer.encode("Hello [INST] é🦊"))


def tekken(tokens: tuple[bytes, ...], **fields: Any) -> GGUFVocabulary:
    """A vocabulary of two special tokens and then `tokens`."""
    tokens = (b"<unk>", b"<s>", *tokens)
    fields = {"types": (3, 3) + (1,) * (len(tokens) - 2), "pre": "tekken", "eos_token_id": None, **fields}
    return replace(TINY_VOCABULARY, model="gpt2", tokens=tokens, scores=(), **fields)


changed = partial(partial, replace, TINY_VOCABULARY)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (changed(model="bert"), 'kind "bert"'),
        (changed(model="gpt2", pre="llama-bpe"), 'pre-tokenizer "llama-bpe"'),
        (changed(scores=TINY_VOCABULARY.scores[1:]), "1024 tokens but 1023 scores"),
        (changed(types=TINY_VOCABULARY.types[1:]), "1024 tokens but 1023 token types"),
        (changed(types=(-1, *TINY_VOCABULARY.types[1:])), "token types -1 to 6, not 1 to 6"),
        (changed(scores=(-1000.0,) * 1024), "all merge scores are equal"),
        (changed(eos_token_id=1024), "eos_token_id 1024 is outside the vocabulary of 1024"),
        (changed(tokens=(b"\xff", *TINY_VOCABULARY.tokens[1:])), "is not UTF-8"),
        (changed(types=(1,) * 1024), "corrupt"),
        (changed(tokens=(), types=(), scores=(), **dict.fromkeys(("bos_token_id", "eos_token_id"))), "outside"),
        (partial(tekken, (b"a", b"b")), "no token for the byte 0x00"),
        (partial(tekken, ("Ā".encode(), b"ab", "日".encode())), "token 4 '日' is special but not among the first"),
        (partial(tekken, ("Ā".encode(), "ā".encode())), "corrupt"),
    ],
)
def test_a_broken_vocabulary_is_refused(broken: Callable[[], GGUFVocabulary], reason: str) -> None:
    with pytest.raises(TokenizerError, match=f"the GGUF file's tokenizer: .*{reason}") as caught:
        load_tokenizer(broken())
    assert "\n" not in str(caught.value)
