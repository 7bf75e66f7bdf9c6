"""Tokenizer classes that are called by their own names, on Mistral's folders and on finetunes'."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizer.finetunes import CHATML, KINDS, write_finetune
from tokenizer.strategies import assistant, user
from tokenizer.vocabularies import FILES, TINY

from mistral_portable.tokenizer import TokenizerFile
from mistral_portable.tokenizer.vocabulary import to_vocabulary
from mistral_portable.transformers import (
    AutoTokenizer,
    LlamaTokenizer,
    LlamaTokenizerFast,
    MistralCommonTokenizer,
    PreTrainedTokenizerFast,
)

CHAT = [user("Hi"), assistant("Yo"), user("a <|im_end|> b")]
MISTRALS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'system' %}{{ raise_exception('no system messages') }}"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
WITH_FILE = ["older files", "listed", "first space"]  # kinds of finetunes that have a tokenizer.model


@pytest.mark.parametrize("kind", KINDS)
def test_a_finetune_has_its_own_tokens_and_template(kind: str, tmp_path: Path) -> None:
    import transformers

    write_finetune(tmp_path, kind, CHATML)
    mine, theirs = LlamaTokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(mine, PreTrainedTokenizerFast)
    options: dict[str, Any] = {"add_generation_prompt": True, "return_dict": False}
    assert mine.apply_chat_template(CHAT, **options) == theirs.apply_chat_template(CHAT, **options)
    assert mine.encode("a<|im_end|>") == theirs.encode("a<|im_end|>")
    assert mine.eos_token == theirs.eos_token == "<|im_end|>"


def test_mistral_s_own_is_mistral_common_s() -> None:
    assert LlamaTokenizerFast is LlamaTokenizer
    mine = LlamaTokenizer.from_pretrained("tiny", padding_side="right")
    assert isinstance(mine, MistralCommonTokenizer)
    assert mine.padding_side == "right"
    assert mine.apply_chat_template([user("Hi")])[:2] == [1, 3]  # <s> [INST]


@pytest.mark.parametrize("kind", WITH_FILE)
@pytest.mark.parametrize("mode", ["test", "finetuning"])
@pytest.mark.parametrize("template", [CHATML, MISTRALS, ""], ids=["ChatML", "Mistral's", "none"])
def test_mistral_s_class_says_what_it_leaves_out(kind: str, mode: str, template: str, tmp_path: Path) -> None:
    """A finetune has tokens of its own, whatever its template is."""
    write_finetune(tmp_path, kind, template)
    own = MistralCommonTokenizer(FILES["v1"] if kind == "older files" else TINY, mode=mode)
    chat = CHAT if mode == "test" else CHAT[:2]
    for opens, path in (
        (MistralCommonTokenizer.from_pretrained, tmp_path),
        (MistralCommonTokenizer, tmp_path / "tokenizer.model"),
    ):
        with pytest.warns(UserWarning, match=r"tokenizer\.model: added tokens or a chat template that are not") as said:
            mine = opens(path, mode=mode)
        assert [len(str(one.message).splitlines()) for one in said] == [1]
        assert mine.encode("a<|im_end|>") == own.encode("a<|im_end|>")
        for tokenize in (True, False):
            with pytest.raises(ValueError, match=r"not Mistral's.*: use AutoTokenizer"):
                mine.apply_chat_template(chat, tokenize=tokenize)


@pytest.mark.parametrize("template", [MISTRALS, ""], ids=["Mistral's", "none"])
@pytest.mark.parametrize("mode", ["test", "finetuning"])
def test_mistral_s_folders_are_quiet(template: str, mode: str, tmp_path: Path) -> None:
    shutil.copyfile(TINY, tmp_path / "tokenizer.model.v3")
    listed = {"0": {"content": "<unk>"}, "1": {"content": "<s>"}, "2": {"content": "</s>"}, "3": {"content": "[INST]"}}
    stated = {"chat_template": template, "added_tokens_decoder": listed, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    chat = CHAT if mode == "test" else CHAT[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine = MistralCommonTokenizer.from_pretrained(tmp_path, mode=mode)
        assert isinstance(AutoTokenizer.from_pretrained(tmp_path), MistralCommonTokenizer)
    assert mine.apply_chat_template(chat) == MistralCommonTokenizer(TINY, mode=mode).apply_chat_template(chat)


@pytest.mark.parametrize("mode", ["test", "finetuning"])
@pytest.mark.parametrize("template", [MISTRALS, "mistral-v3", None])
def test_gguf_s_mistral_templates_in_both_modes(mode: str, template: str | None) -> None:
    source = replace(to_vocabulary(TokenizerFile(TINY)), chat_template=template)
    chat = CHAT if mode == "test" else CHAT[:2]
    own = MistralCommonTokenizer(TINY, mode=mode)
    assert MistralCommonTokenizer(source, mode=mode).apply_chat_template(chat) == own.apply_chat_template(chat)
