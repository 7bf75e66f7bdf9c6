"""Encoding and decoding: every character survives, also one token at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer.strategies import names, texts
from tokenizer.vocabularies import FILES, SENTENCEPIECE, from_file, reference

from mistral_portable.errors import InputError, TokenizerError
from mistral_portable.tokenizer import Tokenizer


@st.composite
def ids(draw: st.DrawFn) -> tuple[Tokenizer, list[int]]:
    """Draw a tokenizer and ids of all kinds: byte and special tokens are as likely as words."""
    tokenizer = from_file(draw(names))
    id = st.integers(0, 1300) | st.integers(0, tokenizer.vocab_size - 1)
    return tokenizer, draw(st.lists(id, max_size=20))


def survivor(tokenizer: Tokenizer, text: str) -> str:
    """The text after a round trip: sentencepiece writes a space as U+2581, so every U+2581 becomes a space."""
    return text.replace("\u2581", " ") if tokenizer.kind == "sentencepiece" else text


@given(names, texts)
def test_text_survives(name: str, text: str) -> None:
    tokenizer = from_file(name)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == survivor(tokenizer, text)
    assert tokenizer.encode(text, bos=False) == tokens[1:]
    assert [token for token in tokens if tokenizer.is_special(token)] == [tokenizer.bos_id]


@pytest.mark.parametrize("name", ["v1", "v3", "tekken 240718"])
def test_every_character_of_the_basic_plane_survives(name: str) -> None:
    tokenizer = from_file(name)
    plane = "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000)
    assert tokenizer.decode(tokenizer.encode(plane)) == survivor(tokenizer, plane)


@given(names, texts)
def test_ids_are_those_of_mistral_common(name: str, text: str) -> None:
    assert from_file(name).encode(text) == reference(name).instruct_tokenizer.tokenizer.encode(
        text, bos=True, eos=False
    )


def test_a_text_is_never_read_as_special_tokens() -> None:
    assert from_file("v3").encode("Hello <s>") == [1, 23325, 1291, 29481, 29535]


@pytest.mark.parametrize("name", FILES)
def test_half_a_surrogate_pair_is_refused(name: str) -> None:
    with pytest.raises(TokenizerError, match=r"'\\ud83e' at index 2"):
        from_file(name).encode("a \ud83e")


@given(ids())
def test_decoding_differs_from_mistral_common_in_the_number_of_replacement_characters_only(
    drawn: tuple[Tokenizer, list[int]],
) -> None:
    """sentencepiece writes one U+FFFD per byte; we write one per broken character, as Unicode recommends."""
    tokenizer, tokens = drawn
    known = [token for token in tokens if token]  # sentencepiece writes <unk>, id 0, as " ⁇ "
    name = next(name for name in FILES if from_file(name) is tokenizer)
    expected = reference(name).decode(known)
    if tokenizer.kind == "sentencepiece":
        assert squeezed(tokenizer.decode(tokens)) == squeezed(expected)
    else:
        assert tokenizer.decode(tokens) == expected


def squeezed(text: str) -> str:
    while "\ufffd\ufffd" in text:
        text = text.replace("\ufffd\ufffd", "\ufffd")
    return text


@given(ids())
def test_streamed_pieces_add_up(drawn: tuple[Tokenizer, list[int]]) -> None:
    tokenizer, tokens = drawn
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, tokens), stream.flush()]) == tokenizer.decode(tokens)


@given(names, texts.filter(bool), texts)
def test_a_continued_text_adds_up(name: str, before: str, text: str) -> None:
    tokenizer = from_file(name)
    after, tokens = tokenizer.encode(before), tokenizer.encode(text, bos=False)
    stream = tokenizer.stream(after)
    continuation = "".join([*map(stream.push, tokens), stream.flush()])
    assert tokenizer.decode(after) + continuation == tokenizer.decode(after + tokens)


@given(names, texts)
def test_no_piece_holds_half_a_character(name: str, text: str) -> None:
    tokenizer = from_file(name)
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode(text.replace("\ufffd", ""))]
    assert "\ufffd" not in "".join(pieces)
    assert stream.flush() == ""


def test_an_emoji_appears_with_its_last_byte() -> None:
    tokenizer = from_file("v3")
    stream = tokenizer.stream()
    assert [stream.push(token) for token in tokenizer.encode("é🦊!")] == ["", "é", "", "", "", "🦊", "!"]


def test_a_broken_character_takes_nothing_with_it() -> None:
    tokenizer = from_file("v3")
    fox = tokenizer.encode("🦊", bos=False)[1:]  # after "▁"
    hello = tokenizer.encode("Hello", bos=False)
    stream = tokenizer.stream()
    assert [stream.push(token) for token in [*fox[:3], *hello]] == ["", "", "", "\ufffd Hello"]
    assert [stream.push(token) for token in [*fox[:2], *fox]] == ["", "", "\ufffd", "", "", "🦊"]
    assert [stream.push(token) for token in [*fox[:2], tokenizer.eos_id]] == ["", "", "\ufffd"]
    assert stream.push(fox[0]) + stream.flush() == "\ufffd"


def test_an_answer_begins_without_the_space_and_a_continuation_with_it() -> None:
    tokenizer = from_file("v3")
    (there,) = tokenizer.encode("there", bos=False)
    chat = tokenizer.chat([{"role": "user", "content": "Hi"}])
    assert tokenizer.stream(chat).push(there) == "there"
    assert tokenizer.stream(tokenizer.encode("Once upon a time")).push(there) == " there"


@given(ids())
def test_token_bytes_are_what_decoding_joins(drawn: tuple[Tokenizer, list[int]]) -> None:
    tokenizer, tokens = drawn
    for token in tokens:
        assert (tokenizer.token_bytes(token) == b"") == tokenizer.is_special(token)
        assert tokenizer.piece(token, False) == (None if tokenizer.is_special(token) else tokenizer.token_bytes(token))
        assert tokenizer.decode([token]) == tokenizer.token_bytes(token, begins_text=True).decode(errors="replace")


def test_special_tokens_are_written_on_request() -> None:
    assert from_file("v3").decode([1, 23325, 2294, 2], skip_special_tokens=False) == "<s>▁Hello▁world</s>"
    tekken = from_file("tekken 240718")
    assert tekken.decode([*tekken.encode("Hello"), 2], skip_special_tokens=False) == "<s>Hello</s>"


@pytest.mark.parametrize("name", ["v3", "tekken 240718"])
def test_ids_outside_the_vocabulary_are_refused(name: str) -> None:
    tokenizer = from_file(name)
    last = tokenizer.vocab_size - 1
    tokenizer.decode([last])
    for id in (-1, last + 1):
        with pytest.raises(InputError, match=f"{id} is outside the vocabulary; ids are 0 to {last}"):
            tokenizer.decode([id])
        with pytest.raises(InputError):
            tokenizer.decode([id], skip_special_tokens=False)
        with pytest.raises(InputError):
            tokenizer.is_special(id)
        with pytest.raises(InputError):
            tokenizer.token_bytes(id)
        with pytest.raises(InputError):
            tokenizer.stream().push(id)


@pytest.mark.parametrize("name", FILES)
def test_known_ids(name: str) -> None:
    tokenizer = from_file(name)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.pad_id == (0 if name in SENTENCEPIECE else 11)
    assert tokenizer.vocab_size == {"v1": 32000}.get(name, 32768 if name in SENTENCEPIECE else 131072)
