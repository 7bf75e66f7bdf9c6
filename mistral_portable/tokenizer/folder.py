"""FolderSettings: what the files beside a Hugging Face tokenizer say of it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mistral_portable.errors import TokenizerError

__all__ = ["SETTINGS_FILES", "TOKENIZER_FILES", "Added", "FolderSettings", "read_object", "read_templates"]

TOKENIZER_FILES = ("tokenizer.model*", "tekken.json")
"""Patterns of Mistral's tokenizer files."""
SETTINGS_FILES = (
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""Patterns of all other files of a Hugging Face folder that decide tokens and chats."""
MAX_SETTINGS_BYTES = 64 * 2**20  # tokenizer.json of 256,000 tokens has 33 MB
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Added:
    """One added token, with the rules by which it is split off: `AddedToken` of tokenizers.

    id: where the files say it; the library counts on from the vocabulary's end. normalized: None is the library's
    choice: only what is not special.
    """

    content: str
    id: int | None = None
    special: bool = False
    normalized: bool | None = None
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class FolderSettings:
    """Settings of a tokenizer: all of tokenizer_config.json, special_tokens_map.json and added_tokens.json that counts.

    Everything that ends with "_token" and is a text names a special token, also what only a template knows.
    listed: tokens with an id, in its order. older: whether the older files list them; tokenizer.json overrules these.
    named: "bos_token" -> the token of this name. further: more special tokens. adds_bos, adds_eos: whether texts have
    these tokens, where no tokenizer.json says it. legacy: whether each text between added tokens begins with a space of
    its own (sentencepiece models).
    """

    listed: tuple[Added, ...]
    older: bool
    named: dict[str, Added]
    further: tuple[Added, ...]
    adds_bos: bool
    adds_eos: bool
    legacy: bool

    @classmethod
    def read(cls, folder: Path) -> "FolderSettings":
        """Read the files of a folder, by the rules of transformers' `from_pretrained`: added_tokens_decoder, or, where
        tokenizer_config.json has none, the two older files.

        Raises TokenizerError for files that are no JSON objects, or that describe tokens in another way.
        """
        settings = read_object(folder / "tokenizer_config.json")
        older = "added_tokens_decoder" not in settings
        if older:
            settings = settings | read_object(folder / "special_tokens_map.json")
        try:
            own = [name for name, token in settings.items() if name.endswith("_token") and isinstance(token, str)]
            names = dict.fromkeys([*_NAMED, *own])
            named = {name: _added(settings[name], special=True) for name in names if settings.get(name)}
            lists = [settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []]
            further = [_added(each, special=True) for each in lists for each in _values(each)]
            if older:
                special = {token.content for token in [*named.values(), *further]}
                listed = [
                    Added(content, id=int(id), special=content in special, normalized=content not in special)
                    for content, id in read_object(folder / "added_tokens.json").items()
                ]
            else:
                listed = [_added(each, id=int(id)) for id, each in settings["added_tokens_decoder"].items()]
            known = {token.content: token for token in listed}
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            why = f"the added tokens cannot be read ({error!r:.80})"
            raise TokenizerError(f"{folder}: {why}; take other files") from error
        return cls(
            listed=tuple(sorted(listed, key=lambda token: token.id or 0)),
            older=older,
            named={name: known.get(token.content, token) for name, token in named.items()},
            further=tuple(further),
            adds_bos=settings.get("add_bos_token") is True,
            adds_eos=settings.get("add_eos_token") is True,
            legacy=bool(settings.get("legacy", True)),
        )

    @property
    def tokens(self) -> Iterator[Added]:
        """All tokens that the files name."""
        yield from self.listed
        yield from self.named.values()
        yield from self.further


def _values(tokens: Any) -> list[Any]:
    return list(tokens.values() if isinstance(tokens, dict) else tokens)


def _added(token: Any, *, id: int | None = None, special: bool = False) -> Added:
    """A token that is written as a text, or as an object with its rules."""
    if isinstance(token, str):
        return Added(token, id=id, special=special)
    normalized = token.get("normalized")
    rules = {name: token.get(name, False) is True for name in ("single_word", "lstrip", "rstrip")}
    is_special = special or token.get("special", False) is True
    if not isinstance(token["content"], str) or not token["content"]:
        raise ValueError(f"content {token['content']!r:.40}")
    return Added(token["content"], id=id, special=is_special, normalized=normalized, **rules)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no file.

    Raises TokenizerError if it is larger than MAX_SETTINGS_BYTES, or no JSON object.
    """
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise TokenizerError(f"{path}: larger than {MAX_SETTINGS_BYTES >> 20} MiB; take another file")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise TokenizerError(f"{path}: not a JSON object; download it again")
    return found


def read_templates(folder: Path) -> dict[str, str]:
    """The chat templates of a folder by their names, of which one is usually "default"; empty if there is none.

    In transformers' order: chat_template.jinja and additional_chat_templates/NAME.jinja, else `chat_template` of
    tokenizer_config.json, a text or a list of {name, template}; else that of chat_template.json. Files that cannot be
    read have none.
    """
    found = {"default": _text(folder / "chat_template.jinja")}
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        found[path.stem] = _text(path)
    texts = {name: text for name, text in found.items() if text}
    for name in ("tokenizer_config.json", "chat_template.json"):
        if texts:
            break
        try:
            texts = _named(read_object(folder / name).get("chat_template"))
        except TokenizerError:
            continue
    return texts


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_size <= MAX_SETTINGS_BYTES else None
    except (OSError, ValueError):
        return None


def _named(template: Any) -> dict[str, str]:
    if isinstance(template, str):
        return {"default": template} if template else {}
    choices = [each for each in template if isinstance(each, dict)] if isinstance(template, list) else []
    named = {choice.get("name"): choice.get("template") for choice in choices}
    return {name: text for name, text in named.items() if isinstance(name, str) and isinstance(text, str) and text}
