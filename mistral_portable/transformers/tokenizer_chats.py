"""ChatTokenizer: what the documented tokenizers' `apply_chat_template` have in common."""

from collections.abc import Callable
from typing import Any

from mistral_portable.transformers.chat import is_batch
from mistral_portable.transformers.tokenizer_encoding import EncodingTokenizer

__all__ = ["ChatTokenizer"]


class ChatTokenizer(EncodingTokenizer):
    """The encoding of conversations: one or several, as ids or as texts, padded and truncated."""

    def _chats(
        self,
        conversation: Any,
        encode: Callable[[Any], list[int]],
        write: Callable[[Any], str],
        *,
        tokenize: bool,
        padding: Any,
        truncation: bool,
        max_length: int | None,
        return_tensors: str | None,
        return_dict: bool,
    ) -> Any:
        """The result of `apply_chat_template`. encode, write: make ids, or a text, of one list of messages.

        Raises InputError for what is no conversation, TypeError for a `truncation` that is not a bool.
        """
        if not isinstance(truncation, bool):
            raise TypeError(f"truncation={truncation!r} must be True or False for a chat")
        batched = is_batch(conversation)
        chats = conversation if batched else [conversation]
        if not tokenize:
            texts = [write(chat) for chat in chats]
            return texts if batched else texts[0]
        ids = [encode(chat) for chat in chats]
        encoding = self(
            ids if batched else ids[0],
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )
        return encoding if return_dict else encoding["input_ids"]
