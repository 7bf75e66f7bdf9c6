"""Reads the vocabulary that a GGUF file stores from a tokenizer of Hugging Face's library: a tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.common import BYTE_PIECE
from mistral_portable.tokenizer.gguf import TEKKEN_PATTERN
from mistral_portable.tokenizer.source import GGUFVocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["json_vocabulary"]

_NORMAL, _UNKNOWN, _BYTE = 1, 2, 6


def json_vocabulary(backend: Backend) -> GGUFVocabulary:
    """The tokens of the model, without added ones, as "llama" (sentencepiece's BPE) or "gpt2" with tekken's cuts.

    A piece's score is minus the number of the first merge that makes it: merges are in the order of the scores.

    Raises TokenizerError for tokenizers that GGUF has no name for.
    """
    whole: dict[str, Any] = json.loads(backend.to_str())
    model = whole["model"]
    if model.get("type") != "BPE":
        raise TokenizerError(f"a tokenizer.json of the type {model.get('type')} has no counterpart in GGUF")
    size = max(model["vocab"].values(), default=-1) + 1
    tokens = [f"[UNUSED_{id}]" for id in range(size)]
    for token, id in model["vocab"].items():
        tokens[id] = token
    pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        return _sentencepiece(whole, tokens, pairs)
    if f'"{TEKKEN_PATTERN}"' not in json.dumps(whole["pre_tokenizer"], ensure_ascii=False).replace("\\\\", "\\"):
        raise TokenizerError("the tokenizer.json cuts texts in a way that has no name in GGUF: keep the folder")
    return GGUFVocabulary(
        model="gpt2",
        tokens=tuple(token.encode() for token in tokens),
        scores=(),
        types=(_NORMAL,) * size,
        merges=tuple(f"{left} {right}".encode() for left, right in pairs),
        pre="tekken",
        bos_token_id=None,
        eos_token_id=None,
        unknown_token_id=None,
        add_bos=False,
        add_space_prefix=False,
        chat_template=None,
    )


def _sentencepiece(whole: dict[str, Any], tokens: Sequence[str], pairs: Sequence[tuple[str, ...]]) -> GGUFVocabulary:
    scores = {"".join(pair): -float(rank) for rank, pair in reversed(list(enumerate(pairs, 1)))}
    unknown = whole["model"].get("unk_token")
    types = [_BYTE if BYTE_PIECE.fullmatch(token) else _UNKNOWN if token == unknown else _NORMAL for token in tokens]
    cuts = json.dumps([whole["normalizer"], whole["pre_tokenizer"]])
    return GGUFVocabulary(
        model="llama",
        tokens=tuple(token.encode() for token in tokens),
        scores=tuple(scores.get(token, -float(len(pairs) + 1)) for token in tokens),
        types=tuple(types),
        merges=(),
        pre="default",
        bos_token_id=None,
        eos_token_id=None,
        unknown_token_id=types.index(_UNKNOWN) if _UNKNOWN in types else None,
        add_bos=False,
        add_space_prefix='"Prepend"' in cuts or ('"Metaspace"' in cuts and '"never"' not in cuts),
        chat_template=None,
    )
