"""The bytes of a token of Hugging Face's library, which it does not give itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.gguf import BYTES

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["piece_bytes"]

_SPACE = "\u2581"
_BYTE = re.compile("<0x([0-9A-F]{2})>")


def piece_bytes(backend: Backend) -> Callable[[str, bool], bytes]:
    """A function of a token's text, and whether it is the first of a text, that gives its bytes by the decoder's steps.

    There are two kinds: GPT-2's alphabet of bytes (ByteLevel), and sentencepiece's, which writes U+2581 for a space,
    <0x0A> for a byte, and a space before a text, which `Strip` or `Metaspace` takes away.

    Raises TokenizerError for decoders of another kind.
    """
    steps = list(_steps(json.loads(backend.decoder.__getstate__()))) if backend.decoder else []
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return lambda text, begins_text: _from_alphabet(text)
    if not kinds or not kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        raise TokenizerError(f"the decoder has the steps {', '.join(sorted(kinds)) or 'none'}, which are not supported")
    strips = any(
        (step["type"] == "Strip" and step.get("start")) or (step["type"] == "Metaspace" and _prepends(step))
        for step in steps
    )
    return lambda text, begins_text: _from_piece(text, begins_text and strips)


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def _prepends(metaspace: dict[str, Any]) -> bool:
    return bool(metaspace.get("prepend_scheme", "always") != "never")


def _from_alphabet(text: str) -> bytes:
    try:
        return bytes(BYTES[character] for character in text)
    except KeyError:  # an added token stands for itself
        return text.encode()


def _from_piece(text: str, strips: bool) -> bytes:
    if byte := _BYTE.fullmatch(text):
        return bytes([int(byte[1], 16)])
    text = text.replace(_SPACE, " ")
    return (text.removeprefix(" ") if strips else text).encode()
