"""The sources of a tokenizer: a file beside the weights, a folder, or the vocabulary in a GGUF file."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["GGUFVocabulary", "TokenizerFile", "TokenizerFolder", "TokenizerSource"]


@dataclass(frozen=True)
class TokenizerFile:
    """A `tokenizer.model`, `tokenizer.model.v3` (sentencepiece) or `tekken.json` file.

    path: the file, whose name tells the format; for a member of an archive the archive's path and the member's name.
    content: the bytes of a member of an archive; None for a file.
    """

    path: Path
    content: memoryview | None = None

    def size(self) -> int:
        """Size in bytes. Raises OSError."""
        return self.path.stat().st_size if self.content is None else self.content.nbytes

    def read(self) -> bytes:
        """The whole content. Raises OSError."""
        return self.path.read_bytes() if self.content is None else bytes(self.content)


@dataclass(frozen=True)
class TokenizerFolder:
    """A folder with a `tokenizer.json`, and without a file of Mistral's."""

    path: Path


@dataclass(frozen=True)
class GGUFVocabulary:
    """The `tokenizer.*` metadata of a GGUF file, as stored.

    model: `tokenizer.ggml.model`: "llama" (sentencepiece) or "gpt2" (tekken).
    tokens: one UTF-8 string per id: sentencepiece's pieces, or words in GPT-2's byte alphabet.
    scores: sentencepiece's merge scores; empty for "gpt2".
    types: `gguf.TokenType` values: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    merges: `b"left right"` pairs of "gpt2"; empty for "llama".
    pre: `tokenizer.ggml.pre`, the pre-tokenizer's name: "tekken", or "default" or "" for "llama".
    bos_token_id, eos_token_id, unknown_token_id: the stored ids, None where absent.
    add_bos: whether a prompt starts with the bos token.
    add_space_prefix: whether "llama" puts a space before a text.
    chat_template: the Jinja template, if any, or llama.cpp's name for it: "mistral-v7-tekken".
    ends: further ids that end an answer: `eot_token_id` and `eom_token_id`.
    """

    model: str
    tokens: tuple[bytes, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    merges: tuple[bytes, ...]
    pre: str
    bos_token_id: int | None
    eos_token_id: int | None
    unknown_token_id: int | None
    add_bos: bool
    add_space_prefix: bool
    chat_template: str | None
    ends: tuple[int, ...] = ()


TokenizerSource = TokenizerFile | TokenizerFolder | GGUFVocabulary
