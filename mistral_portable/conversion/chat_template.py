"""Reads the chat template of a Hugging Face folder."""

import json
from pathlib import Path

__all__ = ["chat_template"]


def chat_template(folder: Path | None) -> str | None:
    """The Jinja text in `chat_template.jinja` or `tokenizer_config.json`; None if there is none or it is unreadable.

    If there are several templates, the one named "default". The text is copied, never run.
    """
    if folder is None:
        return None
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, ValueError):
        pass
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    template = settings.get("chat_template") if isinstance(settings, dict) else None
    for choice in template if isinstance(template, list) else ():
        if isinstance(choice, dict) and choice.get("name") == "default":
            template = choice.get("template")
    return template if isinstance(template, str) else None
