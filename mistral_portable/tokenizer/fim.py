"""Encodes a gap to be filled, with mistral-common: <s>[SUFFIX] suffix [PREFIX] prompt, and there the text goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.faults import one_line

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

__all__ = ["encode_fim", "has_fim"]


def encode_fim(mistral: MistralTokenizer[Any, Any, Any, Any, Any], prompt: str, suffix: str | None) -> list[int]:
    """The ids of a text with a gap; `Tokenizer.fim` documents the arguments and errors."""
    from mistral_common.protocol.fim.request import FIMRequest

    version = mistral.version.value
    if not has_fim(mistral):
        raise TokenizerError(
            f"suffix: this tokenizer ({version}) has no token [SUFFIX], so the model cannot fill a gap: "
            f"continue the prompt alone, or load a model such as Codestral"
        )
    try:
        tokens: list[int] = mistral.encode_fim(FIMRequest(prompt=prompt, suffix=suffix)).tokens
    except Exception as error:  # its own errors, UnicodeEncodeError, ...
        raise TokenizerError(f"tokenizer {version}: {one_line(error)}") from error
    return tokens


def has_fim(mistral: MistralTokenizer[Any, Any, Any, Any, Any]) -> bool:
    """Whether the vocabulary has the tokens. One without encodes [SUFFIX] as <unk>, and mistral-common does not look;
    its v1 knows of no such request at all."""
    pieces = mistral.instruct_tokenizer.tokenizer
    if mistral.version.value == "v1":
        return False
    try:
        return all(pieces.get_special_token(name) != pieces.unk_id for name in ("[SUFFIX]", "[PREFIX]"))
    except ValueError:  # a tekken without it
        return False
