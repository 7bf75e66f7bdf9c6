"""A Jinja template in place of settings that GGUF has no place for: the efforts of reasoning, from v15 on."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.source import TokenizerFile

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

__all__ = ["knows_efforts", "settings_template"]


def knows_efforts(mistral: MistralTokenizer[Any, Any, Any, Any, Any]) -> bool:
    """Whether the tokenizer's file lists efforts; where it does not, mistral-common leaves them out without a word."""
    builder = getattr(mistral.instruct_tokenizer.tokenizer, "model_settings_builder", None)
    return getattr(builder, "reasoning_effort", None) is not None


def settings_template(source: TokenizerFile, mistral: MistralTokenizer[Any, Any, Any, Any, Any]) -> str | None:
    """The template that mistral-common generates for a tokenizer with efforts; None for all others.

    Raises TokenizerError if mistral-common generates none.
    """
    if not knows_efforts(mistral):
        return None
    try:
        from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template

        with TemporaryDirectory() as folder:
            file = Path(folder, "tekken.json")
            file.write_bytes(source.read())
            return str(convert_tokenizer_to_chat_template(file))
    except (ImportError, ValueError) as error:
        raise TokenizerError(
            f"mistral-common makes no chat template of {source.path} ({error}): pip install -U mistral-common"
        ) from error
