"""MistralCommonBackend: what transformers 5.x does otherwise than 4.56, beside its own class."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from documented.tokenizers import NAMES, same
from documented.tokenizers import theirs as their_tokenizer
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizer.vocabularies import FILES

from mistral_portable.transformers import MistralCommonBackend

MODES = ["test", "finetuning", "serving", "agnostic"]
IDS = st.lists(st.integers(3, 300), max_size=6)
ROLES = st.sampled_from(["user", "assistant", "system"])
CONTENTS = st.sampled_from(["Hello", "lang:en a b", "c"])
CHATS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": CONTENTS}), min_size=1, max_size=4)


@cache
def ours(name: str, mode: str = "test") -> MistralCommonBackend:
    return MistralCommonBackend(FILES[name], mode=mode)


@given(name=st.sampled_from(["v3", "v7"]), mode=st.sampled_from(MODES), ids=IDS)  # each mode reads a file
def test_special_tokens_around_ids(name: str, mode: str, ids: list[int]) -> None:
    mine, theirs = ours(name, mode), their_tokenizer(name, mode)
    assert mine.mode is theirs.mode
    assert mine.num_special_tokens_to_add() == theirs.num_special_tokens_to_add()
    assert mine.build_inputs_with_special_tokens(ids) == theirs.build_inputs_with_special_tokens(ids)
    assert mine.create_token_type_ids_from_sequences(ids) == theirs.create_token_type_ids_from_sequences(ids)
    for call in ("build_inputs_with_special_tokens", "create_token_type_ids_from_sequences"):
        same(partial(getattr(mine, call), ids, ids), partial(getattr(theirs, call), ids, ids))
    same(lambda: mine.num_special_tokens_to_add(pair=True), lambda: theirs.num_special_tokens_to_add(pair=True))


@settings(max_examples=100)  # chats that are answered are few
@given(
    name=st.sampled_from(NAMES),
    mode=st.sampled_from(["test", "finetuning"]),
    chat=CHATS,
    arguments=st.fixed_dictionaries(
        {},
        optional={
            "add_generation_prompt": st.booleans(),
            "continue_final_message": st.booleans(),
            "return_dict": st.booleans(),
            "tokenize": st.booleans(),
            "return_tensors": st.sampled_from(["np", "pt"]),
        },
    ),
)
def test_chats(name: str, mode: str, chat: Any, arguments: dict[str, Any]) -> None:
    mine, theirs = ours(name, mode), their_tokenizer(name, mode)
    if mode == "test" and chat[-1]["role"] == "system":
        chat = chat[:-1] or [{"role": "user", "content": "Hello"}]  # a late system message is read here
    assume(not any(message["role"] == "system" for message in chat[1:]))
    same(lambda: mine.apply_chat_template(chat, **arguments), lambda: theirs.apply_chat_template(chat, **arguments))


def test_fields_of_the_request() -> None:
    mine, theirs = ours("tekken 240718"), their_tokenizer("tekken 240718")
    chat = [{"role": "user", "content": "Hello"}]
    requests: list[dict[str, Any]] = [
        {"reasoning_effort": "high"},
        {"temperature": 0.5},
        {"frob": 1},
        {"reasoning_effort": "frob"},
    ]
    for fields in requests:
        same(partial(mine.apply_chat_template, chat, **fields), partial(theirs.apply_chat_template, chat, **fields))


TEXTS = st.sampled_from(["lang:en Hello", " lang:en", "a lang:fr"])


@given(name=st.sampled_from(NAMES), text=TEXTS, skip=st.booleans())
def test_the_language_of_a_transcript_is_hidden(name: str, text: str, skip: bool) -> None:
    mine, theirs = ours(name), their_tokenizer(name)
    ids = theirs.encode(text)
    assert mine.encode(text) == ids
    assert mine.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert mine.batch_decode([ids, ids], skip) == theirs.batch_decode([ids, ids], skip)


@pytest.mark.parametrize("method", ["__call__", "encode", "tokenize", "prepare_for_model"])
@pytest.mark.parametrize("argument", ["return_offsets_mapping", "split_special_tokens"])
def test_arguments_of_other_tokenizers(method: str, argument: str) -> None:
    given: Any = [5, 6] if method == "prepare_for_model" else "Hello"
    for value in (False, True):
        mine, theirs = (getattr(tokenizer, method) for tokenizer in (ours("v3"), their_tokenizer("v3")))
        same(partial(mine, given, **{argument: value}), partial(theirs, given, **{argument: value}))
    token_types = {"return_token_type_ids": True}
    assert ours("v3").prepare_for_model([5], **token_types) == ours("v3").prepare_for_model([5])


@pytest.mark.parametrize(
    "method",
    ["added_tokens_decoder", "convert_added_tokens", "get_chat_template", "save_chat_templates", "save_vocabulary"],
)
def test_what_is_not_there(method: str) -> None:
    with pytest.raises(NotImplementedError, match="mistral-common has one file"):
        getattr(ours("v3"), method)()


def test_opening_and_saving(tmp_path: Path) -> None:
    inert = {"trust_remote_code": True, "_from_auto": True, "dtype": "auto", "subfolder": ""}
    opened = MistralCommonBackend.from_pretrained("tiny", mode="serving", **inert)
    assert opened.mode == "serving"
    assert opened.special_tokens_map["bos_token"] == "<s>"
    (file,) = opened.save_pretrained(tmp_path, save_format="mistral")
    assert MistralCommonBackend(file, backend="mistral_common").encode("Hello") == [1, 867]
    for wrong, why in (
        ({"mode": "frob"}, "mode='frob' is none of serving, finetuning, test, agnostic"),
        ({"subfolder": "x"}, "subfolder is not supported"),
        ({"frob": 1}, "has no argument frob"),
    ):
        with pytest.raises(ValueError, match=why):
            MistralCommonBackend.from_pretrained("tiny", **wrong)
    with pytest.raises(ValueError, match="save_format='hf': 'mistral' is there"):
        opened.save_pretrained(tmp_path, save_format="hf")
