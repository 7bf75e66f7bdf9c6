"""Tokens, ids and text convert in both directions like in transformers' class."""

from functools import partial

import numpy as np
import pytest
import torch
from documented.tokenizers import NAMES, ours, outcome, theirs
from hypothesis import given
from hypothesis import strategies as st
from tokenizer.strategies import texts

FILES = st.sampled_from(NAMES)
IDS = st.lists(st.integers(0, 1100) | st.integers(0, 31999), max_size=16)


@given(FILES, texts)
def test_tokenize(name: str, text: str) -> None:
    assert ours(name).tokenize(text) == theirs(name).tokenize(text)


@given(
    FILES,
    IDS | st.integers(0, 31999),
    st.booleans(),
    st.none() | st.booleans(),
    st.sampled_from([list, np.array, torch.tensor]),
)
def test_decode(name: str, ids: object, skip: bool, clean: bool | None, kind: type) -> None:
    given = ids if isinstance(ids, int) or not ids else kind(ids)
    expected = theirs(name).decode(given, skip_special_tokens=skip, clean_up_tokenization_spaces=clean)
    assert ours(name).decode(given, skip_special_tokens=skip, clean_up_tokenization_spaces=clean) == expected


@given(FILES, st.lists(IDS, min_size=1, max_size=3) | IDS.filter(len), st.booleans())
def test_batch_decode(name: str, ids: object, skip: bool) -> None:
    expected = theirs(name).batch_decode(ids, skip_special_tokens=skip)
    assert ours(name).batch_decode(ids, skip_special_tokens=skip) == expected


@given(FILES, texts, st.booleans())
def test_clean_up(name: str, text: str, clean: bool) -> None:
    spaced = f"{text} . ? ! , ' n't 'm 's 've 're a ' b"
    ids = theirs(name).encode(spaced)
    for skip in (False, True):
        expected = theirs(name).decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean)
        assert ours(name).decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean) == expected


@given(FILES, IDS | st.integers(0, 1100), st.booleans())
def test_convert_ids_to_tokens(name: str, ids: object, skip: bool) -> None:
    expected = outcome(lambda: theirs(name).convert_ids_to_tokens(ids, skip_special_tokens=skip))
    assert outcome(lambda: ours(name).convert_ids_to_tokens(ids, skip_special_tokens=skip)) == expected


@given(FILES, texts, st.lists(st.text(max_size=4) | st.sampled_from(["<s>", "</s>", "[INST]", "<pad>", "<unk>"])))
def test_convert_tokens_to_ids(name: str, text: str, strings: list[str]) -> None:
    tokens = theirs(name).tokenize(text) + strings
    assert outcome(lambda: ours(name).convert_tokens_to_ids(tokens)) == theirs(name).convert_tokens_to_ids(tokens)
    for token in tokens[:3]:
        call = partial(ours(name).convert_tokens_to_ids, token)
        assert outcome(call) == theirs(name).convert_tokens_to_ids(token)


@pytest.mark.parametrize("name", NAMES)
def test_the_vocabulary(name: str) -> None:
    mine, reference = ours(name), theirs(name)
    assert list(mine.get_vocab().items()) == list(reference.get_vocab().items())
    assert (mine.vocab_size, len(mine)) == (reference.vocab_size, len(reference))
    assert mine.all_special_ids == reference.all_special_ids
    assert mine.all_special_tokens == reference.all_special_tokens
    for token in ("bos", "eos", "unk", "pad"):
        assert getattr(mine, f"{token}_token_id") == getattr(reference, f"{token}_token_id")
    assert [mine.bos_token, mine.eos_token, mine.unk_token] == ["<s>", "</s>", "<unk>"]


def test_golden_ids() -> None:
    assert ours("v3").encode("Hello <s>") == [1, 23325, 1291, 29481, 29535]
    assert ours("v3").decode([1, 23325, 2294]) == "<s>▁Hello▁world"
    assert ours("v3").decode([1, 23325, 2294], skip_special_tokens=True) == "Hello world"
    assert [ours(name).pad_token_id for name in NAMES] == [0, 0, 0, 0, 11]


def test_the_padding_token_may_be_another() -> None:
    tokenizer = type(ours("v3")).from_pretrained("tiny")
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokenizer(["a", "a a a"], padding=True).input_ids[0][0] == tokenizer.eos_token_id
