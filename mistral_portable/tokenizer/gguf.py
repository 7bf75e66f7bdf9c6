"""Rebuilds the tokenizer file from which the vocabulary of a GGUF file was made."""

import json
import struct
from base64 import b64encode
from functools import lru_cache
from typing import Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.source import GGUFVocabulary
from mistral_portable.tokenizer.version import infer_version

__all__ = ["checked_tokens", "to_file"]

AGAIN = "convert the model again"
CONTROL = 3  # gguf.TokenType, whose values are those of sentencepiece's piece types

# The pattern in the tekken.json files of mistral-common's wheel; GGUF stores only its name, "tekken".
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# GPT-2 writes each byte as one visible character: "!" for 0x21, "Ġ" for a space, "Ā" for 0x00.
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
BYTES = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}


def to_file(vocabulary: GGUFVocabulary) -> tuple[str, bytes]:
    """The name and the content of the `tokenizer.model.vN` or `tekken.json` file with this vocabulary.

    Raises TokenizerError if the vocabulary is inconsistent, or neither sentencepiece nor tekken.
    """
    tokens = checked_tokens(vocabulary)
    control = {token for token, kind in zip(tokens, vocabulary.types, strict=True) if kind == CONTROL}
    version = infer_version(control, vocabulary.chat_template)

    if vocabulary.model == "llama":
        return f"tokenizer.model.{version}", _sentencepiece(vocabulary)
    if vocabulary.model == "gpt2" and vocabulary.pre == "tekken":
        return "tekken.json", _tekken(tokens, version)
    raise TokenizerError(
        f'kind "{vocabulary.model}", pre-tokenizer "{vocabulary.pre}" is unknown; '
        'Mistral\'s are "llama", and "gpt2" with pre-tokenizer "tekken"'
    )


def checked_tokens(vocabulary: GGUFVocabulary) -> list[str]:
    """The texts of the tokens. Raises TokenizerError if types or ids do not fit to them, or one is not UTF-8."""
    size = len(vocabulary.tokens)
    if len(vocabulary.types) != size:
        raise TokenizerError(f"{size} tokens but {len(vocabulary.types)} token types; {AGAIN}")
    if not set(vocabulary.types) <= set(range(1, 7)):
        raise TokenizerError(f"token types {min(vocabulary.types)} to {max(vocabulary.types)}, not 1 to 6; {AGAIN}")
    ids = [(name, getattr(vocabulary, name)) for name in ("bos_token_id", "eos_token_id", "unknown_token_id")]
    for name, id in [*ids, *(("eot or eom", end) for end in vocabulary.ends)]:
        if id is not None and not 0 <= id < size:
            raise TokenizerError(f"{name} {id} is outside the vocabulary of {size} tokens; {AGAIN}")
    try:
        return [token.decode() for token in vocabulary.tokens]
    except UnicodeDecodeError as error:
        raise TokenizerError(f"token {error.object!r} is not UTF-8; {AGAIN}") from error


def _tekken(tokens: list[str], version: str) -> bytes:
    """Build a tekken.json: all special tokens, then the byte tokens from 0x00 on, then one token per merge.

    A token's index is its rank. tiktoken needs nothing else: GGUF's list of merges follows from the ranks.
    """
    if "Ā" not in tokens:
        raise TokenizerError(f"no token for the byte 0x00, so this is not a tekken vocabulary; {AGAIN}")
    specials = tokens.index("Ā")
    texts = []
    for id, token in enumerate(tokens[specials:], specials):
        try:
            texts.append(bytes(BYTES[character] for character in token))
        except KeyError:
            raise TokenizerError(f"token {id} {token!r} is special but not among the first; unsupported") from None
    # v15 needs it, be it empty; the efforts of reasoning that it may list are in the chat template.
    settings: dict[str, Any] = {"model_settings_builder": {}} if version == "v15" else {}
    return json.dumps(
        {
            **settings,
            "config": {
                "pattern": TEKKEN_PATTERN,
                "num_vocab_tokens": len(texts),
                "default_vocab_size": len(tokens),
                "default_num_special_tokens": specials,
                "version": version,
            },
            "vocab": [
                {"rank": rank, "token_bytes": b64encode(text).decode(), "token_str": None}
                for rank, text in enumerate(texts)
            ],
            "special_tokens": [
                {"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(tokens[:specials])
            ],
        }
    ).encode()


def _sentencepiece(vocabulary: GGUFVocabulary) -> bytes:
    """Build a tokenizer.model: sentencepiece's ModelProto with the fields that encoding and decoding read.

    The field numbers are those of sentencepiece_model.proto. The message is encoded by hand because the protobuf module
    that comes with sentencepiece refuses every protobuf older than the one that generated it.
    """
    size = len(vocabulary.tokens)
    if len(vocabulary.scores) != size:
        raise TokenizerError(f"{size} tokens but {len(vocabulary.scores)} scores; {AGAIN}")
    if len(set(vocabulary.scores)) == 1:  # gguf.LlamaHfVocab has no scores and writes -1000 for all
        raise TokenizerError(f"all merge scores are equal, so no text can be encoded; {AGAIN}, with tokenizer.model")
    pieces = b"".join(
        _message(1, _message(1, token) + b"\x15" + struct.pack("<f", score) + _integer(3, kind))
        for token, score, kind in zip(vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True)
    )
    trainer = _integer(3, 2) + _integer(35, 1)  # model_type BPE, byte_fallback
    names = [(45, vocabulary.unknown_token_id), (46, vocabulary.bos_token_id), (47, vocabulary.eos_token_id)]
    for field, id in names:
        if id is not None:
            trainer += _message(field, vocabulary.tokens[id])
    normalizer = _message(1, b"identity") + _integer(3, vocabulary.add_space_prefix) + _integer(4, 0)
    return pieces + _message(2, trainer) + _message(3, normalizer)


@lru_cache  # some 200,000 calls for a vocabulary of 32,000, of a few values
def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
