"""Streamers: show the text of one answer while `generate` makes it."""

import asyncio
import unicodedata
from collections.abc import Iterator
from queue import Queue
from typing import Any

import numpy as np

from mistral_portable.errors import InputError
from mistral_portable.transformers.arrays import as_numpy

__all__ = ["AsyncTextIteratorStreamer", "BaseStreamer", "TextIteratorStreamer", "TextStreamer"]

_CJK = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    *((0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0x2F800, 0x2FA1F)),
)
"""First and last code points of the blocks whose characters are words of their own."""


class BaseStreamer:
    """Base of streamers. `generate` takes any object with these two methods."""

    def put(self, value: Any) -> None:
        """Take the ids of the prompts, [B, T], in the first call, and then those of a token each, [B]."""
        raise NotImplementedError

    def end(self) -> None:
        """Take note that nothing more will come."""
        raise NotImplementedError


class TextStreamer(BaseStreamer):
    """Prints the text of an answer, and of its prompt, word by word.

    What may still change is held back: the beginning of a word that ends with punctuation or half a character, up to
    the last space. Words of letters, and Chinese characters, are shown at once.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        """tokenizer: of the model. skip_prompt: show the answer alone. decode_kwargs: arguments of its `decode`."""
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self._ids: list[int] = []  # of the line
        self._shown = 0  # characters of it
        self._begins = True

    def put(self, value: Any) -> None:
        """Take more ids, and show what cannot change any more. Raises InputError for more than one row."""
        ids = as_numpy("streamer", value)
        if ids.ndim > 1 and len(ids) > 1:
            raise InputError(f"{type(self).__name__} shows one answer: the batch has {len(ids)} rows")
        prompt, self._begins = self._begins, False
        if prompt and self.skip_prompt:
            return
        self._ids += np.ravel(ids).tolist()
        text = self._decode(self._ids)
        if text.endswith("\n"):
            settled = len(text)
            shown = text[self._shown :]
            self._ids = self._ids[-1:]
            self._shown = len(self._decode(self._ids))
        else:
            settled = len(text) if _is_settled(text, self._shown) else text.rfind(" ") + 1
            shown = text[self._shown : settled]
            self._shown += len(shown)
        self.on_finalized_text(shown)

    def end(self) -> None:
        """Show what is left."""
        text = self._decode(self._ids) if self._ids else ""
        left, self._ids, self._shown, self._begins = text[self._shown :], [], 0, True
        self.on_finalized_text(left, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Show a piece of text; print it, with a line break at the end."""
        print(text, flush=True, end="\n" if stream_end else "")

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, **self.decode_kwargs))


class TextIteratorStreamer(TextStreamer):
    """Iterates over the pieces of text, while `generate` runs in another thread."""

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        """timeout: seconds to wait for a piece, after which queue.Empty is raised; None: any time. Others as in
        TextStreamer."""
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self.text_queue: Queue[str | None] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand a piece of text to the thread that iterates."""
        self.text_queue.put(text, timeout=self.timeout)
        if stream_end:
            self.text_queue.put(None, timeout=self.timeout)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self.text_queue.get(timeout=self.timeout)
        if piece is None:
            raise StopIteration
        return piece


class AsyncTextIteratorStreamer(TextStreamer):
    """Iterates over the pieces of text in a coroutine, while `generate` runs in another thread."""

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        """Arguments as in TextIteratorStreamer; a timeout raises TimeoutError. To be made within a coroutine."""
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self.text_queue: asyncio.Queue[str | None] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand a piece of text to the coroutine that iterates."""
        self.loop.call_soon_threadsafe(self.text_queue.put_nowait, text)
        if stream_end:
            self.loop.call_soon_threadsafe(self.text_queue.put_nowait, None)

    def __aiter__(self) -> "AsyncTextIteratorStreamer":
        return self

    async def __anext__(self) -> str:
        async with asyncio.timeout(self.timeout):
            piece = await self.text_queue.get()
        if piece is None:
            raise StopAsyncIteration
        return piece


def _is_settled(text: str, shown: int) -> bool:
    """Whether what is new is sure to stay as it is: a Chinese character at the end, or only letters, marks, numbers and
    spaces."""
    if text and any(first <= ord(text[-1]) <= last for first, last in _CJK):
        return True
    return all(char.isspace() or unicodedata.category(char)[0] in "LMN" for char in text[shown:])
