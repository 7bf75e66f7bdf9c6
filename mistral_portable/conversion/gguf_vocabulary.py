"""Writes the tokenizer of a model into the metadata of a GGUF file."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mistral_portable.conversion.model import Source
from mistral_portable.errors import ConfigError
from mistral_portable.tokenizer import GGUFVocabulary
from mistral_portable.tokenizer.ends import known_ends
from mistral_portable.tokenizer.to_gguf import differing_text, gguf_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["add_vocabulary"]

_END_KEYS = ("eos", "eot", "eom")
_UNUSED, _PAD_SCORE = 5, -10000.0


def add_vocabulary(writer: "GGUFWriter", source: Source) -> None:
    """Add tokens, chat template, and the ids that end a text: eos, then eot and eom, as there are three keys.

    What has no place is told of in warnings.
    """
    tokenizer = source.checkpoint.tokenizer
    config = source.config
    if tokenizer is None:
        writer.add_tokenizer_model("none")  # llama.cpp then accepts token ids only
        vocabulary = None
        eos, bos = None, config.bos_token_id
    else:
        vocabulary = gguf_vocabulary(tokenizer)
        if text := differing_text(tokenizer, vocabulary):
            warnings.warn(
                f"GGUF has no place for all rules of this tokenizer: texts such as {text!r:.60} become other ids there "
                "than in the folder.",
                stacklevel=2,
            )
        vocabulary = _padded(vocabulary, source)
        eos, bos = vocabulary.eos_token_id, vocabulary.bos_token_id
        _add_tokens(writer, vocabulary)
    ends = [eos, *config.eos_token_ids, *source.checkpoint.ends, *(vocabulary.ends if vocabulary else ())]
    kept = _in_order([id for id in ends if id is not None and id >= 0], vocabulary)
    for name, id in (("bos", bos), *zip(_END_KEYS, kept, strict=False)):
        if id is not None and id >= 0:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", id)


def _in_order(ends: Sequence[int], vocabulary: GGUFVocabulary | None) -> list[int]:
    """The ids in the order in which they get GGUF's keys: the first one, then those that no reader knows by a name.

    A warning tells of ids for which neither is there.
    """
    ids = {} if vocabulary is None else {token.decode(): id for id, token in enumerate(vocabulary.tokens)}
    named = known_ends(ids.get)
    different = list(dict.fromkeys(ends))
    ordered = [*different[:1], *sorted(different[1:], key=lambda id: id in named)]
    if lost := [str(id) for id in ordered[len(_END_KEYS) :] if id not in named]:
        warnings.warn(
            f"GGUF has keys for {len(_END_KEYS)} ids that end a text: {', '.join(lost)} are left out; stop at them by "
            "stop_token_ids.",
            stacklevel=2,
        )
    return ordered


def _add_tokens(writer: "GGUFWriter", vocabulary: GGUFVocabulary) -> None:
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": vocabulary.pre,
        "tokenizer.ggml.tokens": list(vocabulary.tokens),
        "tokenizer.ggml.scores": list(vocabulary.scores),
        "tokenizer.ggml.token_type": list(vocabulary.types),
        "tokenizer.ggml.merges": list(vocabulary.merges),
        "tokenizer.ggml.add_bos_token": vocabulary.add_bos,
        "tokenizer.ggml.add_space_prefix": vocabulary.add_space_prefix,
        "tokenizer.ggml.unknown_token_id": vocabulary.unknown_token_id,
        "tokenizer.chat_template": vocabulary.chat_template,
    }
    for key, value in keys.items():
        match value:
            case None | "" | []:
                continue
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)


def _padded(vocabulary: GGUFVocabulary, source: Source) -> GGUFVocabulary:
    """Add unused tokens up to the rows of the embedding table: llama.cpp takes their number from the vocabulary."""
    count, rows = len(vocabulary.tokens), source.config.vocab_size
    if count > rows:
        raise ConfigError(
            f"{source.checkpoint.path}: its tokenizer has {count} tokens and its embedding table {rows} rows; "
            "take the tokenizer file of this model"
        )
    more = range(count, rows)
    return replace(
        vocabulary,
        tokens=vocabulary.tokens + tuple(b"[PAD%d]" % id for id in more),
        types=vocabulary.types + (_UNUSED,) * len(more),
        scores=vocabulary.scores + (_PAD_SCORE,) * len(more) if vocabulary.scores else (),
    )
