"""Encodes a gap to be filled, with mistral-common: <s>[SUFFIX] suffix [PREFIX] prompt, and there the text goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.chat import one_line

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

__all__ = ["encode_fim"]


def encode_fim(mistral: MistralTokenizer[Any, Any, Any, Any, Any], prompt: str, suffix: str | None) -> list[int]:
    """The ids of a text with a gap; `Tokenizer.fim` documents the arguments and errors."""
    from mistral_common.protocol.fim.request import FIMRequest

    pieces = mistral.instruct_tokenizer.tokenizer
    try:
        # A vocabulary without the token encodes it as <unk>, and mistral-common does not look.
        known = pieces.get_special_token("[SUFFIX]") != pieces.unk_id
        tokens: list[int] = mistral.encode_fim(FIMRequest(prompt=prompt, suffix=suffix)).tokens if known else []
    except Exception as error:  # its own errors, UnicodeEncodeError, ...
        raise TokenizerError(f"tokenizer {mistral.version.value}: {one_line(error)}") from error
    if not tokens:
        raise TokenizerError(
            f"suffix: this tokenizer ({mistral.version.value}) has no token [SUFFIX], so the model cannot fill a gap: "
            f"use /v1/completions, or a model such as Codestral"
        )
    return tokens
