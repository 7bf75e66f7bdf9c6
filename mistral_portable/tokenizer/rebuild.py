"""Builds a tokenizer of Hugging Face's library from a vocabulary: a GGUF file's, or a tokenizer.model's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.gguf import AGAIN, CONTROL, TEKKEN_PATTERN, checked_tokens
from mistral_portable.tokenizer.source import GGUFVocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["rebuild"]

_NORMAL, _UNKNOWN, _USER_DEFINED, _BYTE = 1, 2, 4, 6


def rebuild(vocabulary: GGUFVocabulary, *, legacy: bool = True, renamed: Mapping[int, str] | None = None) -> Backend:
    """The tokenizer with these tokens, without added ones.

    legacy: whether each text between two added tokens begins with sentencepiece's space, as in llama.cpp and in
    transformers by default, or the first one alone. renamed: other texts of tokens.

    Raises TokenizerError if the vocabulary is inconsistent, or neither sentencepiece nor tekken.
    """
    tokens = checked_tokens(vocabulary)
    kept = {token for id, token in enumerate(tokens) if id not in (renamed or {})}
    for id, name in (renamed or {}).items():
        if id < len(tokens) and name not in kept:
            tokens[id] = name
    if vocabulary.model == "llama":
        if len(set(vocabulary.scores)) == 1:  # no tokenizer.model was there when the file was made
            raise TokenizerError(f"all merge scores are equal, no text can be encoded; {AGAIN}, with tokenizer.model")
        return _sentencepiece(vocabulary, tokens, legacy)
    if vocabulary.model == "gpt2" and vocabulary.pre == "tekken":
        return _tekken(vocabulary, tokens)
    raise TokenizerError(
        f'kind "{vocabulary.model}", pre-tokenizer "{vocabulary.pre}" is unknown; '
        'known are "llama", and "gpt2" with pre-tokenizer "tekken"'
    )


def _sentencepiece(vocabulary: GGUFVocabulary, tokens: Sequence[str], legacy: bool) -> Backend:
    """Build sentencepiece's BPE: of all pairs that make a normal piece, that of the best score comes first."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    types, scores = vocabulary.types, vocabulary.scores
    if len(scores) != len(tokens):
        raise TokenizerError(f"{len(tokens)} tokens but {len(scores)} scores; {AGAIN}")
    normal = {token: id for id, token in enumerate(tokens) if types[id] == _NORMAL}
    pairs = [
        (-scores[id], id, token[:at], token[at:])
        for token, id in normal.items()
        for at in range(1, len(token))
        if token[:at] in normal and token[at:] in normal
    ]
    unknown = next((token for id, token in enumerate(tokens) if types[id] == _UNKNOWN), None)
    whole = [token for id, token in enumerate(tokens) if types[id] == _USER_DEFINED]
    model = BPE(
        vocab={token: id for id, token in enumerate(tokens)},
        merges=[(left, right) for _, _, left, right in sorted(pairs)],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=_BYTE in types,
        ignore_merges=bool(whole),
    )
    backend = Tokenizer(model)
    spaces = [normalizers.Replace(" ", "▁")]
    cuts: list[pre_tokenizers.PreTokenizer] = []
    steps: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space_prefix:
        if legacy:  # Metaspace leaves its space out where the text begins with one
            spaces.append(normalizers.Replace(Regex(r"\A▁"), "▁▁"))
        scheme = "always" if legacy else "first"
        cuts.append(pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False))
        steps.append(decoders.Strip(content=" ", left=1))
    if whole:
        pattern = "|".join(re.escape(token) for token in sorted(whole, key=len, reverse=True))
        cuts.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    backend.normalizer = normalizers.Sequence(spaces)
    if cuts:
        backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    backend.decoder = decoders.Sequence(steps)
    return backend


def _tekken(vocabulary: GGUFVocabulary, tokens: Sequence[str]) -> Backend:
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    try:
        merges = [tuple(pair.decode().split(" ")) for pair in vocabulary.merges]
    except UnicodeDecodeError as error:
        raise TokenizerError(f"merge {error.object!r} is not UTF-8; {AGAIN}") from error
    if not merges or any(len(pair) != 2 for pair in merges):
        raise TokenizerError(f"merges that are no pairs; {AGAIN}")
    special = {token for token, kind in zip(tokens, vocabulary.types, strict=True) if kind == CONTROL}
    model = BPE(
        vocab={token: id for id, token in enumerate(tokens)},
        merges=[(left, right) for left, right in merges if not {left, right, left + right} & special],
        ignore_merges=True,
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TEKKEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend
