"""Folders of finetunes, as the hub has them: Mistral's vocabulary, added tokens, and another chat template."""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizer.vocabularies import FILES, TINY

from mistral_portable.tokenizer import TokenizerFile, TokenizerFolder, TokenizerSource

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n<|{{ message['role'] }}|>\n{{ message['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TOOLS = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}[{{ m.role | upper }}]{{ m.content | trim }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}[ASSISTANT]{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "zephyr": ZEPHYR, "tools": TOOLS}
KINDS = ["older files", "listed", "first space", "tokenizer.json", "rules", "tekken"]
"""Ways to say which tokens are added: added_tokens.json, added_tokens_decoder with `legacy` true or false,
tokenizer.json alone, tokenizer.json with tokens of all rules, tokenizer.json of bytes."""


def write_finetune(folder: Path, kind: str, template: str) -> TokenizerSource:
    """Write a tokenizer and two more tokens, `<|im_end|>` (hidden, it ends answers) and `<|im_start|>`.

    With the older files it has 32,000 tokens, else the embedded model's 1,024, or 600 of bytes.
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", "transformers_version": "5.0.0"}))
    settings: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "chat_template": template,
    }
    if kind == "older files":
        _write(folder / "added_tokens.json", {"<|im_end|>": 32000, "<|im_start|>": 32001})
        _write(folder / "special_tokens_map.json", {"eos_token": "<|im_end|>"})
    if kind in ("listed", "first space"):
        listed = [_listed(text) for text in ("<unk>", "<s>", "</s>", "<|im_end|>", "<|im_start|>")]
        settings["added_tokens_decoder"] = dict(zip((0, 1, 2, 1024, 1025), listed, strict=True))
        settings["legacy"] = kind == "listed"
    _write(folder / "tokenizer_config.json", settings)
    if kind in ("older files", "listed", "first space"):
        shutil.copyfile(FILES["v1"] if kind == "older files" else TINY, folder / "tokenizer.model")
        return TokenizerFile(folder / "tokenizer.model")
    (_write_bytes_json if kind == "tekken" else _write_json)(folder / "tokenizer.json", kind == "rules")
    return TokenizerFolder(folder)


def _listed(text: str) -> dict[str, Any]:
    rules = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {"content": text, "special": text != "<|im_start|>", **rules}


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_json(path: Path, rules: bool) -> None:
    """Write what transformers' converters make of tokenizer.model: with `rules` that of version 5, else the older one,
    whose normalizer puts a space before each text. And added tokens."""
    from tokenizers import AddedToken, Tokenizer, normalizers
    from transformers import LlamaTokenizer

    shutil.copyfile(TINY, path.with_name("tokenizer.model"))
    LlamaTokenizer.from_pretrained(str(path.parent)).save_pretrained(str(path.parent / "made"))
    path.with_name("tokenizer.model").unlink()
    backend = Tokenizer.from_file(str(path.parent / "made" / "tokenizer.json"))
    shutil.rmtree(path.parent / "made")
    if not rules:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend = Tokenizer.from_str(json.dumps(json.loads(backend.to_str()) | {"pre_tokenizer": None}))
    backend.add_tokens([AddedToken("<|im_start|>", normalized=False)])
    if rules:
        backend.add_tokens([AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True, normalized=False)])
        backend.add_tokens([AddedToken("word", single_word=True), AddedToken("<n>", special=True, normalized=True)])
    backend.save(str(path))


def _write_bytes_json(path: Path, rules: bool) -> None:
    """Write a byte-level BPE of 300 merges with tekken's cuts."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from mistral_portable.tokenizer.gguf import TEKKEN_PATTERN

    backend = Tokenizer(models.BPE(ignore_merges=True))
    cuts = pre_tokenizers.Split(Regex(TEKKEN_PATTERN), behavior="isolated")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([cuts, by_bytes])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet)
    backend.train_from_iterator([Path(__file__).read_text()], trainer)
    backend.add_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<|im_start|>", normalized=False)])
    backend.save(str(path))
