"""AutoTokenizer and the pipeline of finetunes' folders give what transformers' AutoTokenizer gives."""

import shutil
import warnings
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from documented.tokenizers import same
from hypothesis import given
from hypothesis import strategies as st
from tokenizer.finetunes import CHATML, KINDS, TEMPLATES, write_finetune
from tokenizer.strategies import FRAGMENTS, TOOL, TOOL_CHAT, Message, assistant, conversations, user
from tokenizer.vocabularies import TINY

import mistral_portable as mp
from mistral_portable.transformers import AutoTokenizer, MistralCommonTokenizer, PreTrainedTokenizerFast, pipeline

NAMES = ["<|im_start|>", "<|im_end|>", "<left>", "<right>", " word ", "words", "<n>", "</s>", "<unk>", "\u2581", "<|im"]
texts = st.lists(st.sampled_from(FRAGMENTS + NAMES) | st.text(max_size=8), max_size=12).map("".join)
kinds = st.sampled_from(KINDS)
pairs = st.sampled_from([*((kind, "chatml") for kind in KINDS), *(("tekken", name) for name in TEMPLATES)])


@cache
def pair(kind: str, template: str = "chatml") -> tuple[PreTrainedTokenizerFast, Any]:
    """Our tokenizer and transformers', of one folder."""
    import transformers

    folder = Path(mkdtemp())
    write_finetune(folder, kind, TEMPLATES[template])
    mine = AutoTokenizer.from_pretrained(folder)
    assert isinstance(mine, PreTrainedTokenizerFast)
    return mine, transformers.AutoTokenizer.from_pretrained(folder)


@given(kinds, st.lists(texts, min_size=1, max_size=3), st.booleans(), st.data())
def test_calls(kind: str, batch: list[str], special: bool, data: st.DataObject) -> None:
    mine, theirs = pair(kind)
    options: dict[str, Any] = {"add_special_tokens": special, "padding": data.draw(st.booleans())}
    options |= {"truncation": True, "max_length": data.draw(st.integers(3, 9))} if data.draw(st.booleans()) else {}
    if data.draw(st.booleans()):
        options |= {"padding_side": data.draw(st.sampled_from(["left", "right"]))}
    assert dict(mine(batch, **options)) == dict(theirs(batch, **options))
    assert dict(mine(batch[0], **options)) == dict(theirs(batch[0], **options))


@given(kinds, texts)
def test_texts_of_ids(kind: str, text: str) -> None:
    mine, theirs = pair(kind)
    ids = mine.encode(text)
    assert ids == theirs.encode(text)
    for skip in (True, False):
        assert mine.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        assert mine.batch_decode([ids, ids[1:]], skip) == theirs.batch_decode([ids, ids[1:]], skip)
    assert mine.tokenize(text) == theirs.tokenize(text)
    assert mine.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)


@given(pairs, conversations(), st.booleans(), st.booleans())
def test_chats(names: tuple[str, str], messages: list[Message], asks: bool, ends_with_answer: bool) -> None:
    mine, theirs = pair(*names)
    messages = [*messages, assistant("b")] if ends_with_answer else messages
    for chat in (messages, [messages, messages[:1]]):
        for tokenize in (True, False):
            options: dict[str, Any] = {"add_generation_prompt": asks, "tokenize": tokenize, "return_dict": False}
            assert mine.apply_chat_template(chat, **options) == theirs.apply_chat_template(chat, **options)


@given(pairs, conversations(), texts.map("b".__add__))
def test_chats_that_go_on(names: tuple[str, str], messages: list[Message], text: str) -> None:
    mine, theirs = pair(*names)
    options: dict[str, Any] = {"continue_final_message": True, "return_dict": False}
    for chat in ([*messages, assistant(text)], messages):  # a user's message, too
        assert mine.apply_chat_template(chat, **options) == theirs.apply_chat_template(chat, **options)


@pytest.mark.parametrize("kind", ["listed", "tekken"])
@pytest.mark.parametrize("tensors", [None, "np"])
def test_chats_with_tools(kind: str, tensors: str | None) -> None:
    mine, theirs = pair(kind, "tools")
    call: Any = TOOL_CHAT[1]["tool_calls"][0]
    parsed = {**call, "function": {**call["function"], "arguments": {"city": "Paris"}}}
    messages = [TOOL_CHAT[0], {**TOOL_CHAT[1], "tool_calls": [parsed]}, TOOL_CHAT[2]]
    options: dict[str, Any] = {"tools": [TOOL], "add_generation_prompt": True, "return_tensors": tensors}
    same(
        lambda: mine.apply_chat_template(messages, return_dict=True, **options),
        lambda: theirs.apply_chat_template(messages, return_dict=True, **options),
    )


TOLD = "{{ documents | length if documents else 'no' }} {{ style }} {{ messages | length }} {{ bos_token }}"


@pytest.mark.parametrize(
    "options",
    [
        {"chat_template": TOLD, "style": "x"},
        {"chat_template": TOLD, "documents": [{"title": "a", "text": "b"}], "bos_token": "c"},
        {"continue_final_message": True, "add_generation_prompt": True},
        {"chat_template": "{{ raise_exception('no') }}"},
    ],
)
def test_what_templates_are_told(options: dict[str, Any]) -> None:
    mine, theirs = pair("listed")
    call: dict[str, Any] = {"tokenize": False, **options}
    same(lambda: mine.apply_chat_template([user("a")], **call), lambda: _checked(theirs, call))


def _checked(theirs: Any, call: dict[str, Any]) -> Any:
    """transformers' outcome; jinja2's error, which is none of Python's, as a ValueError."""
    from jinja2 import TemplateError

    try:
        return theirs.apply_chat_template([user("a")], **call)
    except TemplateError as error:
        raise ValueError(error) from error


@pytest.mark.parametrize("kind", KINDS)
def test_properties(kind: str) -> None:
    mine, theirs = pair(kind)
    for name in ("bos_token", "eos_token", "unk_token", "pad_token", "padding_side", "truncation_side"):
        assert getattr(mine, name) == getattr(theirs, name), name
    for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "vocab_size", "model_input_names"):
        assert getattr(mine, name) == getattr(theirs, name), name
    assert (len(mine), mine.get_vocab()) == (len(theirs), theirs.get_vocab())
    assert mine.model_max_length == theirs.model_max_length
    assert set(theirs.all_special_ids) <= set(mine.all_special_ids)
    assert mine.chat_template == theirs.chat_template
    with pytest.warns(UserWarning, match="no token 'zzzz'; it becomes <unk>"):
        assert mine.convert_tokens_to_ids(["zzzz", "<|im_end|>"]) == [0, mine.eos_token_id]


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_opened_again_it_is_equal(kind: str, tmp_path: Path) -> None:
    import transformers

    mine, _ = pair(kind)
    saved = mine.save_pretrained(tmp_path / "new" / "folder")
    assert {Path(name).name for name in saved} == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    again: Any = AutoTokenizer.from_pretrained(tmp_path / "new" / "folder")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new" / "folder")
    text, chat = "Hello <|im_start|> there  é🦊", [user("a <|im_end|>"), assistant("b")]
    for other in (again, theirs):
        assert other(text).input_ids == mine(text).input_ids
        assert other.apply_chat_template(chat, return_dict=False) == mine.apply_chat_template(chat)
        assert (other.eos_token, other.pad_token, len(other)) == (mine.eos_token, mine.pad_token, len(mine))


def test_settings_of_the_folder_and_of_the_call(tmp_path: Path) -> None:
    import json

    write_finetune(tmp_path, "listed", CHATML)
    path = tmp_path / "tokenizer_config.json"
    stated = {"padding_side": "left", "truncation_side": "left", "model_max_length": 1e30}
    path.write_text(json.dumps(json.loads(path.read_text()) | stated | {"pad_token": None}))
    mine = AutoTokenizer.from_pretrained(tmp_path, truncation_side="right", model_max_length=5)
    assert (mine.padding_side, mine.truncation_side, mine.model_max_length) == ("left", "right", 5)
    assert mine.pad_token is None
    with pytest.raises(ValueError, match="no padding token; set pad_token"):
        mine(["a", "a a"], padding=True)
    mine.pad_token = mine.eos_token
    assert mine(["a", "a a a"], padding=True).input_ids[0][0] == mine.eos_token_id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"mode": "test"}, "has no argument mode"), ({"padding_side": "up"}, 'neither "left" nor "right"')],
)
def test_arguments_that_it_has_not(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_finetune(tmp_path, "tekken", CHATML)
    with pytest.raises(ValueError, match=message):
        AutoTokenizer.from_pretrained(tmp_path, **arguments)


@pytest.mark.parametrize("call", [[], "x", [user("a"), "b"], [user([{"type": "image"}])]])
def test_what_is_no_chat(call: Any) -> None:
    with pytest.raises(ValueError, match=r"conversation is|message \d"):
        pair("listed")[0].apply_chat_template(call)


def test_without_a_template_a_chat_is_refused(tmp_path: Path) -> None:
    write_finetune(tmp_path, "tekken", "")
    with pytest.raises(ValueError, match="no chat template: give one"):
        AutoTokenizer.from_pretrained(tmp_path).apply_chat_template([user("a")])
    with pytest.raises(ValueError, match=r"mistral-common does not read tokenizer.json; use AutoTokenizer"):
        MistralCommonTokenizer.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def finetune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded model's weights, another template and one renamed token."""
    folder: Path = tmp_path_factory.mktemp("model") / "finetune"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mp.convert("tiny", folder, to="hf")
    shutil.copyfile(TINY, folder / "tokenizer.model")
    for name in ("tokenizer_config.json", "tokenizer.model.v3"):
        (folder / name).unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


def test_the_pipeline_chats_by_the_template(finetune: Path) -> None:
    chatbot = pipeline("text-generation", model=str(finetune), backend="reference")
    native = mp.load(finetune, backend="reference")
    assert isinstance(chatbot.tokenizer, PreTrainedTokenizerFast)
    greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}
    for messages in ([user("Mia has a ball.")], [user("Mia has a ball."), assistant("Mia")]):
        (found,) = chatbot(messages, **greedy)
        expected = native.chat(messages, max_tokens=12, temperature=0).text
        begun = "Mia" if len(messages) == 2 else ""
        assert found["generated_text"] == [messages[0], assistant(begun + expected)]
    (found,) = chatbot("Once upon a time", **greedy)
    text = native.generate("Once upon a time", max_tokens=12, temperature=0).text
    assert found["generated_text"] == "Once upon a time" + text
