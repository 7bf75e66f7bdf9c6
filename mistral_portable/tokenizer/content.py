"""Content of a message: text, or a list of parts, as OpenAI's, Mistral's and vLLM's clients send it."""

from collections.abc import Mapping, Sequence
from typing import Any

from mistral_portable.errors import TokenizerError

__all__ = ["read_content"]

_TEXT_FIELDS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def read_content(content: object, where: str, *, joint: str) -> tuple[str | None, str]:
    """The text of a content (None if it is null), and the reasoning of its parts of the type "thinking".

    where: names the message in errors. joint: stands between the texts of two parts; empty ones are left out.

    Raises TokenizerError for a content that is neither a text nor parts, and for images, audio and files.
    """
    if content is None or isinstance(content, str):
        return content, ""
    if isinstance(content, bytes) or not isinstance(content, Sequence):
        raise TokenizerError(f"{where} has the content {content!r:.80}; pass a string")
    texts, thoughts = list[str](), list[str]()
    for number, part in enumerate(content):
        if isinstance(part, Mapping) and part.get("type") == "thinking":
            thoughts.append(_thought(part, f"{where} part {number}"))
        else:
            texts.append(_text(part, f"{where} part {number}"))
    return joint.join(filter(None, texts)), "\n".join(filter(None, thoughts))


def _text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise TokenizerError(f"{where} is {part!r:.80}; pass a mapping with type and text")
    if kind not in _TEXT_FIELDS:
        raise TokenizerError(f"{where} has the type {kind!r:.40}; only text can be read here: leave it out")
    text = part.get(_TEXT_FIELDS[kind])
    if not isinstance(text, str):
        raise TokenizerError(f"{where} has the text {text!r:.80}; pass a string")
    return text


def _thought(part: Any, where: str) -> str:
    """Mistral's API writes a list of text parts, mistral-common a text."""
    thought = part.get("thinking")
    if isinstance(thought, str):
        return thought
    if not isinstance(thought, list):
        raise TokenizerError(f"{where} has the thinking {thought!r:.80}; pass a string")
    return "".join(_text(inner, where) for inner in thought)
