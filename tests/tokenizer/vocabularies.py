"""Mistral's own tokenizer files, and the GGUF vocabularies that llama.cpp's converter makes from them."""

from functools import cache
from pathlib import Path
from typing import Any

import mistral_common
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from sentencepiece import SentencePieceProcessor

from mistral_portable.tokenizer import GGUFVocabulary, Tokenizer, TokenizerFile, load_tokenizer

_DATA = Path(mistral_common.__file__).with_name("data")
FILES = {
    "v1": _DATA / "tokenizer.model.v1",
    "v2": _DATA / "mistral_instruct_tokenizer_240216.model.v2",
    "v3": _DATA / "mistral_instruct_tokenizer_240323.model.v3",
    "v7": _DATA / "mistral_instruct_tokenizer_241114.model.v7",
    "v7m1": _DATA / "mistral_instruct_tokenizer_241114.model.v7m1",
    "tekken 240718": _DATA / "tekken_240718.json",
    "tekken 240911": _DATA / "tekken_240911.json",
}
TINY = Path(__file__).parents[2] / "mistral_portable/assets/tiny/tokenizer.model.v3"
SENTENCEPIECE = ["v1", "v2", "v3", "v7", "v7m1"]


@cache
def from_file(name: str) -> Tokenizer:
    return load_tokenizer(TokenizerFile(FILES[name]))


@cache
def reference(name: str) -> "MistralTokenizer[Any, Any, Any, Any, Any]":
    return MistralTokenizer.from_file(FILES[name])


@cache
def from_gguf(name: str) -> Tokenizer:
    return load_tokenizer(gguf_vocabulary(FILES[name], chat_template=TEMPLATES[name]))


_TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}SYSTEM"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
_REFUSED = "{{ raise_exception('no place for a system message') }}"

# The template that llama.cpp's converter stores: Hugging Face's, or a name if it has one for the version.
TEMPLATES = {
    "v1": _TURNS.replace("SYSTEM", _REFUSED),
    "v2": None,
    "v3": "mistral-v3",
    "v7": "mistral-v7",
    "v7m1": _TURNS.replace("SYSTEM", "[SYSTEM_PROMPT] {{ m.content }}[/SYSTEM_PROMPT]"),
    "tekken 240718": "{% if tools %}[AVAILABLE_TOOLS]{% endif %}" + _TURNS.replace("SYSTEM", _REFUSED),
    "tekken 240911": "mistral-v3-tekken",
}


def gguf_vocabulary(file: Path, chat_template: str | None = None) -> GGUFVocabulary:
    """Return the metadata that `gguf.vocab.MistralVocab` derives, with user-defined pieces kept as such."""
    if file.suffix == ".json":
        tekken = Tekkenizer.from_file(file)
        specials = tekken.num_special_tokens
        tokens = [tekken.id_to_piece(id).encode() for id in range(specials)]
        tokens += [_visible(tekken.id_to_byte_piece(id)) for id in range(specials, tekken.n_words)]
        types = [3] * specials + [1] * (tekken.n_words - specials)
        return _vocabulary("gpt2", "tekken", tokens, [], types, chat_template)
    pieces = SentencePieceProcessor(model_file=str(file))
    ids = range(pieces.vocab_size())
    return _vocabulary(
        "llama",
        "default",
        [pieces.id_to_piece(id).encode() for id in ids],
        [pieces.get_score(id) for id in ids],
        [_type(pieces, id) for id in ids],
        chat_template,
    )


def _vocabulary(
    model: str, pre: str, tokens: list[bytes], scores: list[float], types: list[int], chat_template: str | None
) -> GGUFVocabulary:
    return GGUFVocabulary(
        model=model,
        tokens=tuple(tokens),
        scores=tuple(scores),
        types=tuple(types),
        merges=(),  # not read, as they follow from the order of the tokens
        pre=pre,
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
        add_bos=True,
        add_space_prefix=True,
        chat_template=chat_template,
    )


def _type(pieces: SentencePieceProcessor, id: int) -> int:
    """The `gguf.TokenType`; user-defined pieces are recognized by their names."""
    if pieces.is_unknown(id):
        return 2
    if pieces.is_control(id):
        return 3
    if pieces.is_byte(id):
        return 6
    return 4 if pieces.id_to_piece(id).startswith(("[REFERENCE_DOC_", "[REF]", "[/REF]")) else 1


def _visible(token: bytes) -> bytes:
    """Write bytes in GPT-2's alphabet, by the algorithm of its `bytes_to_unicode`."""
    return "".join(_ALPHABET[byte] for byte in token).encode()


def _bytes_to_unicode() -> dict[int, str]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in alphabet:
            alphabet[byte] = chr(256 + len(alphabet) - len(printable))
    return alphabet


_ALPHABET = _bytes_to_unicode()
