"""Turns a tokenizer file into the vocabulary that a GGUF file stores: the inverse of `tokenizer.gguf`."""

import struct
from collections.abc import Iterator
from typing import Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.gguf import BYTES, CONTROL
from mistral_portable.tokenizer.open_common import load_common, read_file
from mistral_portable.tokenizer.source import GGUFVocabulary, TokenizerFile
from mistral_portable.tokenizer.tokenizer import Tokenizer

__all__ = ["to_vocabulary"]

_NORMAL, _UNKNOWN = 1, 2
_CHARACTERS = {byte: character for character, byte in BYTES.items()}


def to_vocabulary(source: TokenizerFile, chat_template: str | None = None) -> GGUFVocabulary:
    """The vocabulary of a `tokenizer.model*` or a `tekken.json`, as llama.cpp's conversion stores it.

    chat_template: the Jinja text; by default llama.cpp's name for Mistral's: "mistral-v3", "mistral-v7-tekken".

    Raises TokenizerError if the file is missing, corrupt or of another format.
    """
    tokenizer = load_common(source)
    if tokenizer.kind == "tekken":
        return _tekken(tokenizer, chat_template or f"mistral-{tokenizer.version}-tekken")
    _, model = read_file(source)
    return _sentencepiece(tokenizer, model, chat_template or f"mistral-{tokenizer.version}")


def _tekken(tokenizer: Tokenizer, chat_template: str) -> GGUFVocabulary:
    ids = range(tokenizer.vocab_size)
    special = [tokenizer.is_special(id) for id in ids]
    names = [
        tokenizer.decode([id], skip_special_tokens=False) if special[id] else _visible(tokenizer.token_bytes(id))
        for id in ids
    ]
    return GGUFVocabulary(
        model="gpt2",
        tokens=tuple(name.encode() for name in names),
        scores=(),
        types=tuple(CONTROL if control else _NORMAL for control in special),
        merges=tuple(_merges([tokenizer.token_bytes(id) for id in ids if not special[id]])),
        pre="tekken",
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        unknown_token_id=names.index("<unk>") if "<unk>" in names else None,
        add_bos=True,
        add_space_prefix=False,
        chat_template=chat_template,
    )


def _merges(tokens: list[bytes]) -> Iterator[bytes]:
    """`b"left right"` for every pair of tokens that together are a token, in the order of that token's rank.

    Pairs of the same token are in the order of their own ranks, as in llama.cpp's conversion.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for token in tokens:
        pairs = ((token[:at], token[at:]) for at in range(1, len(token)))
        known = [(ranks[left], ranks[right], left, right) for left, right in pairs if left in ranks and right in ranks]
        for _, _, left, right in sorted(known):
            yield f"{_visible(left)} {_visible(right)}".encode()


def _visible(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)


def _sentencepiece(tokenizer: Tokenizer, model: bytes, chat_template: str) -> GGUFVocabulary:
    """Read the pieces of sentencepiece's ModelProto; its library does not tell user-defined pieces from normal ones.

    Field numbers are those of sentencepiece_model.proto: pieces 1 (text 1, score 2, type 3), normalizer 3 (3: a space
    before every text).
    """
    tokens, scores, types, space = [], [], [], True
    try:
        for field, value in _fields(model):
            if field == 1 and isinstance(value, bytes):
                piece: dict[int, Any] = {1: b"", 2: bytes(4), 3: _NORMAL} | dict(_fields(value))
                tokens.append(piece[1])
                scores.append(struct.unpack("<f", piece[2])[0])
                types.append(piece[3])
            elif field == 3 and isinstance(value, bytes):
                space = bool(dict(_fields(value)).get(3, True))
    except (IndexError, struct.error, TypeError, ValueError) as error:
        raise TokenizerError(f"the sentencepiece model cannot be read: {error}; download it again") from error
    return GGUFVocabulary(
        model="llama",
        tokens=tuple(tokens),
        scores=tuple(scores),
        types=tuple(types),
        merges=(),
        pre="default",
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        unknown_token_id=types.index(_UNKNOWN) if _UNKNOWN in types else None,
        add_bos=True,
        add_space_prefix=space,
        chat_template=chat_template,
    )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message in order, each with its number: ints, or bytes of strings, messages and floats.

    Raises ValueError and IndexError for truncated messages.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            if kind != 2:
                raise ValueError(f"a field of the kind {kind}")
            size, at = _varint(message, at)
        if at + size > len(message):
            raise ValueError("it is truncated")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at an offset, and the offset behind it. Raises IndexError or ValueError."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
