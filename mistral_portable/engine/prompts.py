"""Prompts: what a caller may ask with, and its token ids."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from mistral_portable.answers import Tools
from mistral_portable.errors import ContextError, InputError, TokenizerError
from mistral_portable.tokenizer import Tokenizer

__all__ = ["Messages", "Prompt", "Prompts", "is_chat", "is_several"]

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int] | NDArray[np.integer[Any]] | Messages
"""Text, token ids, or chat messages (`{"role": "user", "content": "..."}`)."""


class Prompts:
    """Makes token ids of prompts, and refuses those that a model cannot read."""

    def __init__(
        self, tokenizer: Tokenizer | None, *, vocab_size: int, max_context: int, longest: int, source: str
    ) -> None:
        """longest: the most that max_context may be. source: the checkpoint's path. Both are for errors."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_context = max_context
        self._longest = longest
        self._source = source

    @property
    def has_tokenizer(self) -> bool:
        """Whether prompts may be text."""
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. Raises TokenizerError if it has none."""
        if self._tokenizer is None:
            raise TokenizerError(
                f"{self._source} has no tokenizer: put tokenizer.model or tekken.json beside the weights, "
                f"or pass token ids instead of text"
            )
        return self._tokenizer

    def encode(self, prompt: Prompt, tools: Tools | None = None, reasoning_effort: str | None = None) -> list[int]:
        """The ids of a prompt. tools, reasoning_effort: beside messages only.

        Raises InputError if it is empty or no prompt, ContextError if it is too long, TokenizerError for a chat that
        the template refuses.
        """
        if is_chat(prompt):
            return self.checked(self.tokenizer.chat(prompt, tools=tools, reasoning_effort=reasoning_effort))
        if reasoning_effort is not None:
            raise InputError("reasoning_effort needs a prompt of messages: give messages instead of a text or ids")
        if tools:
            raise InputError("tools need a prompt of messages: give messages instead of a text or ids")
        if isinstance(prompt, str):
            if not prompt:
                raise InputError("the prompt is empty: give some text")
            return self.checked(self.tokenizer.encode(prompt))
        return self.checked(prompt)

    def continuation(self, text: str | Sequence[int]) -> list[int]:
        """The ids of a text that goes on with another one, up to as many as the context holds.

        Raises InputError if it is none, or an id is outside the vocabulary.
        """
        if isinstance(text, str):
            return self.tokenizer.encode(text, bos=False)[: self._max_context]
        if isinstance(text, bytes) or not isinstance(text, Sequence):
            raise InputError(f"{text!r:.40} is neither a text nor a list of token ids")
        return self.checked(text[: self._max_context]) if text else []

    def checked(self, token_ids: Any) -> list[int]:
        """Token ids as ints. Raises InputError for those outside the vocabulary and for none, ContextError for too
        many."""
        wrong = isinstance(token_ids, str | bytes | bytearray) or getattr(token_ids, "ndim", 1) != 1
        if wrong or not isinstance(token_ids, Sequence | np.ndarray):
            raise InputError(f"a prompt is text, a list of token ids, or a list of messages, not {token_ids!r:.40}")
        if not len(token_ids):
            raise InputError("the prompt is empty: give at least one token")
        if len(token_ids) > self._max_context:
            remedy = f", or raise max_context={self._max_context}" if self._max_context < self._longest else ""
            raise ContextError(
                f"the prompt is too long: {len(token_ids)} tokens > {self._max_context} maximum: shorten it{remedy}"
            )
        for token in token_ids:
            if isinstance(token, bool) or not isinstance(token, int | np.integer):
                raise InputError(f"token id {token!r} is not an integer")
            if not 0 <= token < self._vocab_size:
                raise InputError(f"token id {token} is outside the vocabulary of {self._vocab_size}")
        return [int(token) for token in token_ids]


def is_chat(prompt: Any) -> TypeGuard[Messages]:
    """Whether it is a list of messages."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def is_several(prompt: Prompt | Sequence[Prompt]) -> TypeGuard[Sequence[Prompt]]:
    """Whether it is a list of prompts: texts, lists of ids or lists of messages; not one of these itself."""
    if isinstance(prompt, str | bytes | bytearray) or not isinstance(prompt, Sequence) or not len(prompt):
        return False
    return isinstance(prompt[0], str | Sequence | np.ndarray)
