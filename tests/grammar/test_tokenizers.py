"""Rules over the tokenizers that mistral-common ships, and over the embedded model's."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from grammar.walk import accepts, grammars, ids, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer.finetunes import CHATML, write_finetune
from tokenizer.vocabularies import FILES

from mistral_portable.grammar.vocabulary import Vocabulary
from mistral_portable.tokenizer import load_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "n": {"type": "integer"}, "c": {"const": "é▁😀 \n"}},
    "required": ["name"],
    "additionalProperties": False,
}
VALID: list[Any] = [{"name": "Tom"}, {"name": "é😀▁ {", "n": -40}, {"name": "\u200b", "n": 7, "c": "é▁😀 \n"}]
INVALID: list[Any] = [
    {},
    {"name": ""},
    {"n": 1, "name": "a"},
    {"name": "Tom", "n": 1.5},
    {"name": "Tom", "c": "é"},
    "a",
]
TEXTS = st.text(st.sampled_from('a bc é▁😀\n\t\0{}",:1\u200b') | st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = ["tiny", *FILES]


@cache
def vocabulary(name: str) -> Vocabulary:
    return Vocabulary(tokenizer(name))


def prompts(name: str) -> list[list[int]]:
    """A text, and a chat up to its answer."""
    own = tokenizer(name)
    return [own.encode("Once"), own.chat([{"role": "user", "content": "Hi"}])]


@pytest.mark.parametrize("name", NAMES)
def test_values_are_accepted_if_they_are_valid(name: str) -> None:
    grammar = grammars(name).compile(schema=SCHEMA)
    for prompt in prompts(name):
        for value in VALID:
            assert accepts(grammar, json.dumps(value, ensure_ascii=False), prompt, name=name)
        for value in (
            {},
            {"name": ""},
            {"n": 1, "name": "a"},
            {"name": "Tom", "n": 1.5},
            {"name": "Tom", "c": "é"},
            "a",
        ):
            assert not accepts(grammar, json.dumps(value, ensure_ascii=False), prompt, name=name)


@pytest.mark.parametrize("name", NAMES)
def test_the_space_that_begins_a_text_is_the_rule_s_only_if_it_is_shown(name: str) -> None:
    for regex in ("yes|no", " yes| no", " *yes"):
        grammar = grammars(name).compile(regex=regex)
        for prompt in prompts(name):
            for text in ("yes", " yes", "  yes", "no", " no"):
                assert accepts(grammar, text, prompt, name=name) == bool(re.fullmatch(regex, text))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "v1"])
def test_an_answer_may_begin_with_the_token_that_the_model_knows_best(name: str) -> None:
    """Behind [/INST], in v1 a text, sentencepiece writes "▁yes", and so did the texts that the model has read."""
    own = tokenizer(name)
    answer = own.encode("yes", bos=False)
    constraint = grammars(name).compile(regex="yes|no").begin(prompts(name)[1])
    for token in answer:
        assert constraint.allowed()[token]
        constraint.accept(token)
    assert constraint.forced == own.eos_id


@given(st.sampled_from(NAMES), TEXTS)
@settings(max_examples=100)
def test_a_text_is_cut_into_tokens_of_exactly_its_bytes(name: str, text: str) -> None:
    own = vocabulary(name)
    tokens = own(text)
    assert b"".join(own.tokens[token] for token in tokens) == text.encode()
    assert not set(tokens) & set(own.special_token_ids)


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_are_named_in_angle_brackets(name: str) -> None:
    own = vocabulary(name)
    names = [own.tokens[token] for token in own.special_token_ids]
    assert {b"<s>", b"</s>", b"<unk>"} <= set(names)
    assert all(text.startswith(b"<") and text.endswith(b">") for text in names)
    assert len(ids(name, False)) > 256


@pytest.mark.parametrize("kind", ["listed", "tekken"])
def test_the_name_of_an_added_token_is_text(kind: str, tmp_path: Path) -> None:
    """A finetune's tokenizer encodes `<|im_end|>` as the token that ends an answer; a rule spells it."""
    own = load_tokenizer(write_finetune(tmp_path, kind, CHATML))
    spelled = Vocabulary(own)("a<|im_end|>b")
    assert not any(own.is_special(id) for id in spelled)
    assert b"".join(own.token_bytes(id) for id in spelled) == b"a<|im_end|>b"
