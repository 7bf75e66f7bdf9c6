"""Opens tokenizers by Hugging Face's library: tokenizer.json, or vocabularies of other files, with added tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.folder import Added, FolderSettings
from mistral_portable.tokenizer.gguf import CONTROL
from mistral_portable.tokenizer.library import LibraryTokenizer
from mistral_portable.tokenizer.rebuild import rebuild
from mistral_portable.tokenizer.source import GGUFVocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["library_of_folder", "library_of_vocabulary"]

MAX_FILE_BYTES = 256 * 2**20
_UNKNOWN, _USER_DEFINED = 2, 4
_PROBE = "a b\n\U0010ffff"


def library_of_folder(
    folder: Path, vocabulary: GGUFVocabulary | None, templates: Mapping[str, str]
) -> LibraryTokenizer:
    """The tokenizer of a Hugging Face folder; its ids are those of transformers' AutoTokenizer.

    vocabulary: that of the folder's tokenizer.model or tekken.json, which is taken where there is no tokenizer.json.

    Raises TokenizerError if a file is missing, corrupt or too large.
    """
    settings = FolderSettings.read(folder)
    names = {name: token.content for name, token in settings.named.items()}
    file = folder / "tokenizer.json"
    if file.is_file() or vocabulary is None:
        backend, more = _read(file), settings.further
        own = backend.get_added_tokens_decoder() if settings.older else {}
        listed = tuple(token for token in settings.listed if token.id not in own)
        if backend.post_processor is None:
            _frame(backend, None, None)
    else:
        renamed = {token.id: token.content for token in settings.listed if token.id is not None}
        backend = rebuild(vocabulary, legacy=settings.legacy, renamed=renamed)
        listed = settings.listed
        if vocabulary.add_space_prefix:  # so each text between them gets its own space
            listed = tuple(_exact(token) for token in listed)
        named_ids = {"bos_token": vocabulary.bos_token_id, "eos_token": vocabulary.eos_token_id}
        for name, id in (named_ids | {"unk_token": vocabulary.unknown_token_id}).items():
            if id is not None:
                names.setdefault(name, vocabulary.tokens[id].decode())
        more = (*settings.further, *_controls(vocabulary, [CONTROL]))
    for token in listed:
        _add(backend, token)
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in (*(settings.named.get(name, Added(text, special=True)) for name, text in names.items()), *more):
        if token.content not in known:
            _add(backend, token)
            known.add(token.content)
    if backend.post_processor is None:  # that of a tokenizer.json counts, whatever the settings say
        bos, eos = names.get("bos_token"), names.get("eos_token")
        _frame(backend, bos if settings.adds_bos else None, eos if settings.adds_eos else None)
    return _checked(LibraryTokenizer(backend, special_tokens=names, templates=templates), str(folder))


def library_of_vocabulary(vocabulary: GGUFVocabulary, templates: Mapping[str, str]) -> LibraryTokenizer:
    """The tokenizer of a GGUF file: its tokens of the types control, unknown and user defined are added tokens.

    Raises TokenizerError if the vocabulary is inconsistent, or neither sentencepiece nor tekken.
    """
    try:
        backend = rebuild(vocabulary)
    except TokenizerError as error:
        raise TokenizerError(f"the GGUF file's tokenizer: {error}") from error
    for token in _controls(vocabulary, [CONTROL, _UNKNOWN, _USER_DEFINED]):
        _add(backend, token)
    named_ids = {
        "bos_token": vocabulary.bos_token_id,
        "eos_token": vocabulary.eos_token_id,
        "unk_token": vocabulary.unknown_token_id,
    }
    names = {name: vocabulary.tokens[id].decode() for name, id in named_ids.items() if id is not None}
    _frame(backend, names.get("bos_token") if vocabulary.add_bos else None, None)
    return _checked(
        LibraryTokenizer(
            backend,
            special_tokens=names,
            templates=templates,
            eos_id=vocabulary.eos_token_id,
            ends=vocabulary.ends,
        ),
        "the GGUF file's tokenizer",
    )


def _read(file: Path) -> Backend:
    from tokenizers import Tokenizer

    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerError(f"{file}: larger than {MAX_FILE_BYTES >> 20} MiB; take another file")
        backend = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except (KeyboardInterrupt, SystemExit, TokenizerError):
        raise
    except BaseException as error:  # the library raises Exception, and its panics are BaseExceptions
        raise TokenizerError(f"{file}: corrupt ({' '.join(str(error).split())[:200]}); download it again") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _controls(vocabulary: GGUFVocabulary, kinds: Iterable[int]) -> list[Added]:
    special = {CONTROL, _UNKNOWN}
    return [
        Added(token.decode(), id=id, special=kind in special, normalized=False)
        for id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in kinds
    ]


def _exact(token: Added) -> Added:
    return replace(token, normalized=False)


def _add(backend: Backend, token: Added) -> None:
    from tokenizers import AddedToken

    rules = {"single_word": token.single_word, "lstrip": token.lstrip, "rstrip": token.rstrip}
    normalized = not token.special if token.normalized is None else token.normalized
    backend.add_tokens([AddedToken(token.content, special=token.special, normalized=normalized, **rules)])


def _frame(backend: Backend, bos: str | None, eos: str | None) -> None:
    """Let texts begin and end with these tokens, or with nothing."""
    from tokenizers import processors

    named = [(name, backend.token_to_id(name)) for name in (bos, eos) if name]
    single = " ".join([*([f"{bos}:0"] if bos else []), "$A:0", *([f"{eos}:0"] if eos else [])])
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=named)


def _checked(tokenizer: LibraryTokenizer, source: str) -> LibraryTokenizer:
    """The tokenizer, after a text was encoded and decoded. Raises TokenizerError if the library fails at it."""
    try:
        tokenizer.decode(tokenizer.encode(_PROBE))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # its panics, too
        raise TokenizerError(
            f"{source}: encodes no text ({' '.join(str(error).split())[:200]}); download it again"
        ) from error
    return tokenizer
