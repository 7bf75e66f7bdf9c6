"""CommonTokenizer: one of Mistral's own tokenizers, by mistral-common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.chat import encode_chat
from mistral_portable.tokenizer.ends import known_ends
from mistral_portable.tokenizer.fim import encode_fim, has_fim
from mistral_portable.tokenizer.tokenizer import Tokenizer, check_messages, check_text

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

__all__ = ["CommonTokenizer"]

SPACE = "\u2581"  # sentencepiece writes a space as this character
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


class CommonTokenizer(Tokenizer):
    """A tokenizer of Mistral's and its chat template. No part of a text is read as a special token.

    mistral: mistral-common's tokenizer, for what it alone offers: its pieces and its chat requests.
    """

    def __init__(
        self,
        mistral: MistralTokenizer[Any, Any, Any, Any, Any],
        *,
        eos_id: int | None = None,
        ends: Iterable[int] = (),
        adds_bos: bool = True,
        chats: bool = True,
    ) -> None:
        """eos_id: the id that ends an answer, if it is not that of `</s>`. ends: further ones. adds_bos: whether texts
        begin with `<s>`; chats do in any case. chats: whether the chat template is Mistral's."""
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        self.mistral = mistral
        self.chats = chats
        self._adds_bos = adds_bos
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
        self.end_ids = frozenset([self.eos_id, *ends]) | known_ends(self.control_id)
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
        check_text(text)
        return self._tokenizer.encode(text, bos=bos and self._adds_bos, eos=False)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
    ) -> list[int]:
        """The ids of a conversation up to where the model answers, by mistral-common's chat template.

        messages, tools: mappings in OpenAI's format, in any of the forms that clients send (`messages.read_messages`).
        Consecutive messages of one role are joined by an empty line. A final assistant message is the beginning of the
        answer: no `</s>` follows it. reasoning_effort: from v15 on, one of those that the tokenizer's file lists.

        >>> tokenizer.chat([{"role": "user", "content": "Hi"}])
        [1, 3, 16127, 4]

        Raises TokenizerError if this version does not allow a message, a tool, the order of the roles or the effort.
        """
        check_messages(messages)
        if not self.chats:
            raise TokenizerError("the model's chat template is not Mistral's; write the prompt and encode it")
        return encode_chat(self.mistral, messages, tools, reasoning_effort)

    @property
    def fills(self) -> bool:
        """Whether the vocabulary has the tokens that `fim` needs."""
        return has_fim(self.mistral)

    def fim(self, prompt: str, suffix: str | None = None) -> list[int]:
        """The ids that ask for the text between a prompt and a suffix (fill in the middle).

        >>> codestral.fim("def f(", "return 1")
        [1, 13, 1575, ..., 14, ...]

        Raises TokenizerError if the vocabulary has no [SUFFIX], or a text holds half a surrogate pair.
        """
        return encode_fim(self.mistral, prompt, suffix)

    def written(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, in which special ones stand by their names, in sentencepiece's pieces."""
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy

        return self._tokenizer.decode(list(tokens), SpecialTokenPolicy.KEEP)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is control, padding or unknown. Raises InputError if it is outside the vocabulary."""
        return self.checked(token_id) in self._special

    def control_id(self, name: str) -> int | None:
        """The id of a control token, such as "[TOOL_CALLS]"; None if the vocabulary has none of this name."""
        if self._tekken:
            return self._tekken.get_special_token(name) if self._tekken.is_special(name) else None
        found = self._tokenizer.get_special_token(name)  # sentencepiece gives <unk> for unknown names
        return found if found in self._special and found != self._tokenizer.unk_id else None

    def piece(self, token_id: int, begins_text: bool) -> bytes | None:
        """The bytes that the token adds to a text, or None, as `Tokenizer.piece` says."""
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
