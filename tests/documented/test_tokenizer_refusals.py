"""Refused arguments: the exception is of transformers' type, its message is one clear line."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from documented.tokenizers import ours, outcome, theirs
from mistral_common.exceptions import MistralCommonException
from tokenizer.strategies import assistant, user
from tokenizer.vocabularies import FILES
from transformers.tokenization_mistral_common import MistralCommonBackend

from mistral_portable.transformers import AutoTokenizer, MistralCommonTokenizer

Call = Callable[[Any], Any]

ALIKE: dict[str, Call] = {
    "text_pair is not supported": lambda t: t("a", "b"),
    "text_target is not supported": lambda t: t("a", text_target="b"),
    "text_pair_target is not supported": lambda t: t("a", text_pair_target="b"),
    "no argument is_split_into_words": lambda t: t(["a"], is_split_into_words=True),
    "no argument return_token_type_ids": lambda t: t("a", return_token_type_ids=True),
    "return_tensors='x' is none": lambda t: t("a", return_tensors="x"),
    "None is no text": lambda t: t(),
    "3 is no text": lambda t: t(3),
    "3 is no text; pass": lambda t: t(["a", 3]),
    "batch of texts is empty": lambda t: t([]),
    r"\[\] is no text": lambda t: t([[1], []]),
    "padding='x' is no strategy": lambda t: t("a", padding="x"),
    "padding=None is no strategy": lambda t: t("a", padding=None),
    "truncation='x' is no strategy": lambda t: t("a", truncation="x"),
    "truncation='only_first' is for pairs": lambda t: t("a", truncation="only_first"),
    "truncation='only_second' is for pairs": lambda t: t("a", truncation="only_second"),
    "max_length=5 is no multiple of pad_to_multiple_of=4": lambda t: t(
        "a", padding=True, truncation=True, max_length=5, pad_to_multiple_of=4
    ),
    "padding_side='up' is neither": lambda t: t("a", padding="max_length", max_length=9, padding_side="up"),
    "input_ids has rows of different lengths": lambda t: t(["a", "a b c"], return_tensors="pt"),
    "encode has no argument foo": lambda t: t.encode("a", foo=1),
    "text_pair .*not supported": lambda t: t.encode("a", "b"),
    "tokenize has no argument foo": lambda t: t.tokenize("a", foo=1),
    "prepare_for_model has no argument foo": lambda t: t.prepare_for_model([1], foo=1),
    "pair_ids is not supported": lambda t: t.prepare_for_model([1], [2]),
    "pair_ids .*no pairs": lambda t: t.truncate_sequences([1, 2], [3], 1),
    "truncation_strategy='only_first'": lambda t: t.truncate_sequences([1, 2], truncation_strategy="only_first"),
    "truncation_strategy='x'": lambda t: t.truncate_sequences([1, 2], truncation_strategy="x"),
    "token_ids_1 is not supported": lambda t: t.get_special_tokens_mask([1], [2]),
    "no input_ids in": lambda t: t.pad({"attention_mask": [1]}),
    "decode has no argument foo": lambda t: t.decode([1], foo=1),
    "'x' is no token id": lambda t: t.decode("x"),
    r"1\.5 is no token id": lambda t: t.decode([1.5]),
    "batch_decode has no argument foo": lambda t: t.batch_decode([[1]], foo=1),
    "token id 1000000 is outside": lambda t: t.decode([10**6]),
    "token id -1 is outside": lambda t: t.convert_ids_to_tokens(-1),
    "token id 1 is special": lambda t: t.convert_ids_to_tokens(1, skip_special_tokens=True),
    "3 is no token": lambda t: t.convert_tokens_to_ids(3),
    "no tokens can be added": lambda t: t.add_tokens(["a"]),
    "no tokens can .*added": lambda t: t.add_special_tokens({"pad_token": "a"}),
    "truncation='longest_first' must be": lambda t: t.apply_chat_template([user("a")], truncation="longest_first"),
    "role 'robot'": lambda t: t.apply_chat_template([{"role": "robot", "content": "a"}]),
    "Tool.function: Field required": lambda t: t.apply_chat_template([user("a")], tools=[{}]),
    "must start with a user message": lambda t: t.apply_chat_template([assistant("a")]),
    "Expected last role": lambda t: t.apply_chat_template([user("a"), assistant("b")]),
    "requires final message to be an assistant": lambda t: t.apply_chat_template(
        [user("a")], continue_final_message=True
    ),
    "save_pretrained has no argument foo": lambda t: t.save_pretrained("/nowhere/at/all", foo=1),
    "'x' is none of test, finetuning": lambda t: type(t)(FILES["v3"], mode="x"),
    "MistralCommonTokenizer has no argument foo": lambda t: type(t)(FILES["v3"], foo=1),
    "from_pretrained has no argument foo": lambda t: type(t).from_pretrained("tiny", foo=1),
    "exclude each other": lambda t: type(t).from_pretrained("a/b", force_download=True, local_files_only=True),
    "pass one name": lambda t: type(t).from_pretrained("tiny", "b"),
}

# Where transformers' class crashes otherwise, or accepts what makes no sense.
STRICTER: dict[str, Call] = {
    "max_length=0 must be": lambda t: t("a", max_length=0),
    "max_length=-1 must be": lambda t: t("a", max_length=-1),
    "max_length=1.5 must be": lambda t: t("a", max_length=1.5),
    "pad_to_multiple_of=0 must be": lambda t: t("a", padding=True, pad_to_multiple_of=0),
    "stride=-1 must be": lambda t: t("a b c", max_length=2, stride=-1),
    "padding_side='up'": lambda t: t("a", padding_side="up"),
    "half a surrogate pair": lambda t: t("\ud83e"),
    "is no text; pass a string": lambda t: t([["a", "b"], ["c"]]),
    "not of attention_mask": lambda t: t.pad({"input_ids": [[1], [2]], "attention_mask": [[1]]}),
    "not as long as its input_ids": lambda t: t.pad({"input_ids": [[1], [2, 3]], "attention_mask": [[1], [1]]}),
    r"no input_ids in \{\}": lambda t: t.pad([]),
    "entries of the first": lambda t: t.pad([{"input_ids": [1]}, {}]),
    "3 is no list of token ids": lambda t: t.pad({"input_ids": 3}),
    "the conversation is 3": lambda t: t.apply_chat_template([[user("a")], 3]),
    "conversation is \\[\\]": lambda t: t.apply_chat_template([]),
    "conversation is 'Hi'": lambda t: t.apply_chat_template("Hi"),
    "message 0 is 'Hi'": lambda t: t.apply_chat_template(["Hi"]),
    "content 3": lambda t: t.apply_chat_template([user(3)]),
    "content None": lambda t: t.apply_chat_template([{"role": "user"}]),
    "type 'image'": lambda t: t.apply_chat_template([user([{"type": "image", "url": "x"}])]),
    "add_generation_prompt is not supported": lambda t: t.apply_chat_template([user("a")], add_generation_prompt=True),
    "apply_chat_template has no argument": lambda t: t.apply_chat_template([user("a")], reasoning_effort="high"),
    "pass its JSON schema": lambda t: t.apply_chat_template([user("a")], tools=[print]),
    "'serving' is none of test, finetuning": lambda t: type(t)(FILES["v3"], mode="serving"),
    "return_tensors='mlx'": lambda t: t("a", return_tensors="mlx"),
}


def refusal(call: Call) -> str:
    kinds = (ValueError, TypeError, LookupError, NotImplementedError, MistralCommonException)
    with pytest.raises(kinds) as caught:
        call(ours("v3"))
    return str(caught.value)


@pytest.mark.parametrize("reason", ALIKE)
def test_the_exception_is_transformers(reason: str) -> None:
    message = refusal(ALIKE[reason])
    assert re.search(reason, message)
    assert "\n" not in message
    assert outcome(lambda: ALIKE[reason](ours("v3"))) == outcome(lambda: ALIKE[reason](theirs("v3")))


@pytest.mark.parametrize("reason", STRICTER)
def test_where_transformers_does_not_a_value_error_is_raised(reason: str) -> None:
    message = refusal(STRICTER[reason])
    assert re.search(reason, message)
    assert "\n" not in message
    assert outcome(lambda: STRICTER[reason](ours("v3"))) == {ValueError}
    assert outcome(lambda: STRICTER[reason](theirs("v3"))) != {ValueError}


def test_what_the_template_refuses_is_mistral_commons_own() -> None:
    with pytest.raises(MistralCommonException, match="must start with a user"):
        ours("v3").apply_chat_template([assistant("a")])


def test_autotokenizer_is_not_made() -> None:
    with pytest.raises(OSError, match="from_pretrained"):
        AutoTokenizer()


def test_arguments_without_effect_are_warned_of() -> None:
    tokenizer = MistralCommonTokenizer.from_pretrained("tiny")
    with pytest.warns(UserWarning, match="padding='max_length' does nothing: the model has no largest length"):
        assert tokenizer("a", padding="max_length").input_ids == tokenizer.encode("a")
    with pytest.warns(UserWarning, match="takes no notice of max_length=3"):
        tokenizer("a", padding=True, max_length=3)
    with pytest.warns(UserWarning, match="no token 'nope'; it becomes <unk>"):
        assert tokenizer.convert_tokens_to_ids("nope") == tokenizer.unk_token_id
    tokenizer.model_max_length = 2
    with pytest.warns(UserWarning, match="tokens, more than model_max_length=2"):
        tokenizer("a b c d")


def test_defaults_are_the_documented_ones() -> None:
    tokenizer = MistralCommonTokenizer.from_pretrained("tiny")
    assert (tokenizer.mode, tokenizer.model_max_length) == ("test", int(1e30))
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("left", "right")
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    assert not tokenizer.clean_up_tokenization_spaces


def test_the_prefix_of_a_text_is_kept() -> None:
    """transformers 5 removes it: some sound models write it before their answers. 4.56 documents no such thing."""
    ids = ours("v3").encode("lang:en Hello")
    assert ours("v3").decode(ids, skip_special_tokens=True) == "lang:en Hello"
    assert MistralCommonBackend(FILES["v3"]).decode(ids, skip_special_tokens=True) == " Hello"
