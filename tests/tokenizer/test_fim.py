"""Gaps to be filled: mistral-common's ids where the vocabulary has the tokens, one clear line where it has not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mistral_common.protocol.fim.request import FIMRequest
from tokenizer.vocabularies import FILES, TINY, from_file, from_gguf, reference

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer import TokenizerFile, load_tokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
FILLING = ["v3", "v7", "v7m1", "tekken 240718", "tekken 240911"]


@pytest.mark.parametrize("name", FILLING)
@given(prompt=TEXTS, suffix=st.none() | TEXTS)
def test_ids_are_mistral_common_s(name: str, prompt: str, suffix: str | None) -> None:
    expected = reference(name).encode_fim(FIMRequest(prompt=prompt, suffix=suffix)).tokens
    for tokenizer in (from_file(name), from_gguf(name)):
        assert tokenizer.fills
        assert tokenizer.fim(prompt, suffix) == expected


@pytest.mark.parametrize("name", sorted(set(FILES) - set(FILLING)))
def test_older_vocabularies_have_no_such_tokens(name: str) -> None:
    for tokenizer in (from_file(name), from_gguf(name), load_tokenizer(TokenizerFile(TINY))):
        assert not tokenizer.fills
        with pytest.raises(TokenizerError, match=r"suffix: .*\[SUFFIX\]"):
            tokenizer.fim("def f(", "return 1")


def test_half_a_character() -> None:
    with pytest.raises(TokenizerError):
        from_file("v3").fim("\ud800", "x")
