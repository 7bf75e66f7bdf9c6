"""Tokenizer: encodes texts and chats, decodes token ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mistral_portable.errors import InputError, TokenizerError
from mistral_portable.tokenizer.chat import encode_chat
from mistral_portable.tokenizer.stream import TextStream

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

__all__ = ["Tokenizer"]

SPACE = "\u2581"  # sentencepiece writes a space as this character
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


class Tokenizer:
    """One of Mistral's tokenizers, made by `load_tokenizer`.

    kind: "sentencepiece" or "tekken".
    version: "v1" to "v15" as mistral-common counts them; it names the chat template.
    vocab_size: the number of token ids.
    bos_id: the id of `<s>`.
    eos_id: the id that ends an answer: that of `</s>`, unless a GGUF file names another.
    pad_id: the id of `<pad>`; where there is none, transformers' choice: 0 for sentencepiece, 11 for tekken.
    chats: whether the chat template is Mistral's; a GGUF file may bring a template of another family.
    mistral: mistral-common's tokenizer, for what it alone offers: its pieces and its chat requests.
    """

    def __init__(
        self,
        mistral: MistralTokenizer[Any, Any, Any, Any, Any],
        *,
        eos_id: int | None = None,
        chats: bool = True,
    ) -> None:
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        self.mistral = mistral
        self.chats = chats
        self._tokenizer = tokenizer = mistral.instruct_tokenizer.tokenizer
        self._tekken = tokenizer if isinstance(tokenizer, Tekkenizer) else None
        # sentencepiece gives <unk> a type of its own, but it stands for no text either.
        self._special = tokenizer.special_ids | {tokenizer.unk_id}
        first = tokenizer.encode("a", bos=False, eos=False)[0]
        self._adds_space = not self._tekken and tokenizer.id_to_piece(first).startswith(SPACE)
        self.kind = "tekken" if self._tekken else "sentencepiece"
        self.version = str(tokenizer.version.value)
        self.vocab_size = tokenizer.n_words
        self.bos_id = tokenizer.bos_id
        self.eos_id = tokenizer.eos_id if eos_id is None else eos_id
        self.pad_id = self._find_pad_id()

    def _find_pad_id(self) -> int:
        if self._tekken:
            return self._tekken.pad_id if self._tekken.is_special("<pad>") else 11
        return max(self._tokenizer.pad_id, 0)  # sentencepiece has -1 for "none"

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """The ids of a text, after `<s>` unless `bos` is False. No part of the text is read as `<s>` or [INST].

        >>> tokenizer.encode("Hello <s>")
        [1, 23325, 1291, 29481, 29535]

        Raises TokenizerError if the text holds half a surrogate pair, which is no character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"{text[error.start]!r} at index {error.start}"
            raise TokenizerError(f"the text holds {half}, half a surrogate pair; remove it") from error
        return self._tokenizer.encode(text, bos=bos, eos=False)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The ids of a conversation up to where the model answers, by mistral-common's chat template.

        messages, tools: mappings in OpenAI's format, in any of the forms that clients send (`messages.read_messages`).
        Consecutive messages of one role are joined by an empty line. A final assistant message is the beginning of the
        answer: no `</s>` follows it.

        >>> tokenizer.chat([{"role": "user", "content": "Hi"}])
        [1, 3, 16127, 4]

        Raises TokenizerError if this version does not allow a message, a tool or the order of the roles, or if the
        GGUF file's chat template is of another family.
        """
        if not self.chats:
            raise TokenizerError("the model's chat template is not Mistral's; write the prompt and encode it")
        return encode_chat(self.mistral, messages, tools)

    def decode(self, tokens: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of the tokens; U+FFFD stands for bytes that are no character.

        The space that sentencepiece puts before every text is dropped: "▁Yo" is "Yo". Without `skip_special_tokens`
        sentencepiece's pieces are returned unchanged, such as `<s>▁Hello▁world`, like mistral-common does.

        Raises InputError if an id is outside the vocabulary.
        """
        if skip_special_tokens:
            stream = self.stream()
            return "".join([*map(stream.push, tokens), stream.flush()])
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

        return self._tokenizer.decode([self._checked(token) for token in tokens], SpecialTokenPolicy.KEEP)

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """A stream for the tokens that follow `after`, for example a prompt.

        A text begins if `after` is empty or ends with a special token, such as the [/INST] before an answer: the pieces
        then add up to `decode(tokens)`. Otherwise a text continues, and its first space counts: the pieces add up to
        `decode(after + tokens)` without `decode(after)`, such as " there" after "Once upon a time".

        Raises InputError if the last id of `after` is outside the vocabulary.
        """
        return TextStream(self.piece, begins_text=not after or self.is_special(after[-1]))

    def is_special(self, token_id: int) -> bool:
        """Whether the token is control, padding or unknown, and so stands for no text.

        Raises InputError if the id is outside the vocabulary.
        """
        return self._checked(token_id) in self._special

    def control_id(self, name: str) -> int | None:
        """The id of a control token, such as "[TOOL_CALLS]"; None if the vocabulary has none of this name."""
        if self._tekken:
            return self._tekken.get_special_token(name) if self._tekken.is_special(name) else None
        found = self._tokenizer.get_special_token(name)  # sentencepiece gives <unk> for unknown names
        return found if found in self._special and found != self._tokenizer.unk_id else None

    def token_bytes(self, token_id: int, *, begins_text: bool = False) -> bytes:
        """The bytes that the token adds to a text: `piece`, or b"" for a special token."""
        return self.piece(token_id, begins_text) or b""

    def piece(self, token_id: int, begins_text: bool) -> bytes | None:
        """The bytes that the token adds to a text, which may be a part of a character; None for a special token.

        begins_text: whether it is the first token of a text, where the space that sentencepiece adds is dropped.

        Raises InputError if the id is outside the vocabulary.
        """
        if self.is_special(token_id):
            return None
        if self._tekken:
            return self._tekken.id_to_byte_piece(token_id)
        piece = self._tokenizer.id_to_piece(token_id)
        if BYTE_PIECE.fullmatch(piece):
            return bytes([int(piece[1:5], 16)])
        if begins_text and self._adds_space:
            piece = piece.removeprefix(SPACE)
        return piece.replace(SPACE, " ").encode()

    def _checked(self, token_id: int) -> int:
        if not 0 <= token_id < self.vocab_size:
            raise InputError(f"token id {token_id} is outside the vocabulary; ids are 0 to {self.vocab_size - 1}")
        return int(token_id)
