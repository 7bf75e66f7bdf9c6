"""Writes a tokenizer of Hugging Face's library into a folder, for transformers and for this package."""

import json
from pathlib import Path

from mistral_portable.tokenizer.library import LibraryTokenizer

__all__ = ["write_library"]


def write_library(folder: Path, tokenizer: LibraryTokenizer) -> list[Path]:
    """Write tokenizer.json with its added tokens, tokenizer_config.json with the names of tokens that transformers and
    templates need, and the chat templates; returns the paths. Raises OSError."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": tokenizer.adds_bos}
    written = {
        "tokenizer.json": str(tokenizer.backend.to_str(pretty=True)),
        "tokenizer_config.json": json.dumps(settings | tokenizer.special_tokens, indent=2) + "\n",
    }
    for name, text in tokenizer.templates.items():
        written["chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"] = text
    for name, text in written.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return [folder / name for name in written]
