"""Tokenizer: what every kind offers. It encodes texts and chats, and decodes token ids."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import Any

from mistral_portable.errors import InputError, TokenizerError
from mistral_portable.tokenizer.stream import TextStream

__all__ = ["Tokenizer", "check_messages", "check_text"]


class Tokenizer(ABC):
    """A tokenizer, made by `load_tokenizer`: a `CommonTokenizer` or a `LibraryTokenizer`.

    kind: "sentencepiece", "tekken", or "library": tokens of Hugging Face's tokenizers.
    version: "v1" to "v15" as mistral-common counts them, or "jinja": it names the chat template.
    vocab_size: the number of token ids.
    bos_id: the id of `<s>`, or the token that is named so; where there is none, `eos_id`.
    eos_id: the id that ends an answer: that of `</s>`, unless the files name another.
    end_ids: all ids that end an answer.
    pad_id: the id of `<pad>`; where there is none, transformers' choice: 0 for sentencepiece, 11 for tekken.
    chats: whether there is a chat template.
    """

    kind: str
    version: str
    vocab_size: int
    bos_id: int
    eos_id: int
    end_ids: frozenset[int]
    pad_id: int
    chats: bool

    @abstractmethod
    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """The ids of a text, after `<s>` unless `bos` is False or the files say that texts have none.

        Raises TokenizerError if the text holds half a surrogate pair, which is no character.
        """

    @abstractmethod
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = None,
    ) -> list[int]:
        """The ids of a conversation up to where the model answers.

        messages, tools: mappings in OpenAI's format, in any of the forms that clients send. A final assistant message
        is the beginning of the answer: nothing that ends a turn follows it. reasoning_effort: how much the model is to
        reason, in a word that it knows, such as "none" or "high".

        Raises TokenizerError if there is no chat template, or if it does not allow a message, a tool, the order of the
        roles or the effort.
        """

    @property
    @abstractmethod
    def fills(self) -> bool:
        """Whether the vocabulary has the tokens that `fim` needs."""

    @abstractmethod
    def fim(self, prompt: str, suffix: str | None = None) -> list[int]:
        """The ids that ask for the text between a prompt and a suffix (fill in the middle).

        Raises TokenizerError if the vocabulary has no [SUFFIX], or a text holds half a surrogate pair.
        """

    @abstractmethod
    def control_id(self, name: str) -> int | None:
        """The id of a control token, such as "[TOOL_CALLS]"; None if the vocabulary has none of this name."""

    @abstractmethod
    def is_special(self, token_id: int) -> bool:
        """Whether the token is control, padding or unknown, and so stands for no text.

        Raises InputError if the id is outside the vocabulary.
        """

    @abstractmethod
    def piece(self, token_id: int, begins_text: bool) -> bytes | None:
        """The bytes that the token adds to a text, which may be a part of a character; None for a special token.

        begins_text: whether it is the first token of a text, where the space that sentencepiece adds is dropped.

        Raises InputError if the id is outside the vocabulary.
        """

    @abstractmethod
    def written(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, in which special ones stand by their names, such as `<s>`."""

    def decode(self, tokens: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of the tokens; U+FFFD stands for bytes that are no character.

        The space that sentencepiece puts before every text is dropped: "▁Yo" is "Yo". Without `skip_special_tokens` a
        `CommonTokenizer` returns sentencepiece's pieces unchanged, such as `<s>▁Hello▁world`, like mistral-common does.

        Raises InputError if an id is outside the vocabulary.
        """
        if isinstance(tokens, str | bytes) or not isinstance(tokens, Iterable):
            raise InputError(f"tokens={tokens!r:.40} must be a list of token ids")
        ids = [self.checked(token) for token in tokens]
        if not skip_special_tokens:
            return self.written(ids)
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, after: Sequence[int] = ()) -> TextStream:
        """A stream for the tokens that follow `after`, for example a prompt.

        A text begins if `after` is empty or ends with a special token, such as the [/INST] before an answer: the pieces
        then add up to `decode(tokens)`. Otherwise a text continues, and its first space counts: the pieces add up to
        `decode(after + tokens)` without `decode(after)`, such as " there" after "Once upon a time".

        Raises InputError if the last id of `after` is outside the vocabulary.
        """
        return TextStream(self.piece, begins_text=not after or self.is_special(after[-1]))

    def token_bytes(self, token_id: int, *, begins_text: bool = False) -> bytes:
        """The bytes that the token adds to a text: `piece`, or b"" for a special token."""
        return self.piece(token_id, begins_text) or b""

    def checked(self, token_id: int) -> int:
        """The id as an int. Raises InputError if it is outside the vocabulary."""
        try:
            found = index(token_id)  # also NumPy's integers
        except TypeError:
            raise InputError(f"token id {token_id!r:.40} is not an integer") from None
        if not 0 <= found < self.vocab_size:
            raise InputError(f"token id {found} is outside the vocabulary; ids are 0 to {self.vocab_size - 1}")
        return found

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.kind} {self.version}, {self.vocab_size} tokens>"


def check_messages(messages: object) -> None:
    """Raise InputError for what is no list of messages at all; what is in it, the readers of messages check."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InputError(
            f"messages={messages!r:.40} must be a list of mappings with role and content, such as "
            '[{"role": "user", "content": "Hi"}]'
        )


def check_text(text: object) -> None:
    """Raise InputError for what is no text, TokenizerError if it has half a surrogate pair, which is no character."""
    if not isinstance(text, str):
        raise InputError(f"text={text!r:.40} must be a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"{text[error.start]!r} at index {error.start}"
        raise TokenizerError(f"the text holds {half}, half a surrogate pair; remove it") from error
