"""Streams: one answer's text as it is made, an iterator over pieces, for threads and for coroutines."""

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from types import TracebackType
from typing import Self

from mistral_portable.engine.generation import Generation, Timings, peak_memory_bytes
from mistral_portable.engine.loop import Loop
from mistral_portable.engine.request import Completion
from mistral_portable.sampling import Sampled, StopMatcher
from mistral_portable.tokenizer import TextStream

__all__ = ["Answer", "AsyncTextStreamer", "TextStreamer"]


class Answer:
    """The text of a completion, and what has been made of it so far."""

    def __init__(self, completion: Completion, ends: Collection[int], text: TextStream | None, load_s: float) -> None:
        """ends: the ids that end the text, with reason "stop". text: the tokenizer's stream behind the prompt; None for
        checkpoints without a tokenizer. load_s: seconds, for the timings."""
        params = completion.sampler.params
        self.completion = completion
        self._prompt_tokens = len(completion.tokens)
        self._ends = ends
        self._stream = text
        self._load_s = load_s
        self._stops = StopMatcher(params.stop)
        self._wants_logprobs = params.logprobs is not None
        self._pieces: list[str] = []
        self._sampled: list[Sampled] = []
        self._finish_reason = ""

    @property
    def done(self) -> bool:
        """Whether the last token has been taken, or a stop string has ended the text."""
        return bool(self._finish_reason)

    @property
    def sampled(self) -> Sequence[Sampled]:
        """The tokens that have been taken, the one that ended the text included."""
        return self._sampled

    def take(self) -> str:
        """Take the next token; return the text that is final now. Raises the completion's error."""
        sampled = self.completion.next()
        self._sampled.append(sampled)
        piece = ""
        if sampled.token in self._ends:
            self._finish_reason = "stop"
        elif self._stream is not None:
            piece = self._stops.push(self._stream.push(sampled.token))
        if self._stops.matched is not None:
            self._finish_reason = "stop"
        elif self._finish_reason or len(self._sampled) == self.completion.limit:
            piece += self._held_back()
        if piece:
            self._pieces.append(piece)
        return piece

    @property
    def generation(self) -> Generation:
        """The text, tokens and timings so far."""
        completion = self.completion
        return Generation(
            text="".join(self._pieces),
            tokens=tuple(sampled.token for sampled in self._sampled),
            finish_reason=self._finish_reason,
            logprobs=tuple(self._sampled) if self._wants_logprobs else None,
            timings=Timings(
                load_s=self._load_s,
                prefill_tokens=self._prompt_tokens,
                cached_tokens=completion.cached or 0,
                prefill_s=completion.prefill_s,
                decode_tokens=max(0, len(completion.tokens) - self._prompt_tokens - 1),
                decode_s=completion.decode_s,
                peak_memory_bytes=peak_memory_bytes(),
            ),
        )

    def _held_back(self) -> str:
        """The rest of the text, as no token follows."""
        rest = "" if self._stream is None else self._stops.push(self._stream.flush())
        self._finish_reason = self._finish_reason or ("length" if self._stops.matched is None else "stop")
        return rest + self._stops.flush()


class TextStreamer:
    """Iterate for pieces of text, each final: no broken characters, nothing of a stop string.

    `generation` is what there is so far, also after an interruption. The cache lane is given back at the end of
    the iteration, on an error, when the streamer is dropped, and by `close()` or the end of a `with` block.
    """

    def __init__(self, loop: Loop, answer: Answer) -> None:
        """Made by `Model.stream`."""
        # The generator does not refer to the streamer: one that is dropped is freed at once.
        self._answer = answer
        self._pieces = _pieces(loop, answer)

    @property
    def generation(self) -> Generation:
        """The text, tokens and timings so far."""
        return self._answer.generation

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop generating and give the cache lane back."""
        self._pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncTextStreamer:
    """TextStreamer for coroutines: `async for piece in streamer`, `await streamer.aclose()`, `async with`."""

    def __init__(self, loop: Loop, answer: Answer) -> None:
        """Made by `Model.astream`."""
        self._answer = answer
        self._pieces = _apieces(loop, answer)

    @property
    def generation(self) -> Generation:
        """The text, tokens and timings so far."""
        return self._answer.generation

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Stop generating and give the cache lane back."""
        await self._pieces.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _pieces(loop: Loop, answer: Answer) -> Generator[str, None, None]:
    with closing(loop.run([answer.completion])) as made:
        for _ in made:
            if piece := answer.take():
                yield piece
            if answer.done:
                break


async def _apieces(loop: Loop, answer: Answer) -> AsyncGenerator[str, None]:
    async with aclosing(loop.arun([answer.completion])) as made:
        async for _ in made:
            if piece := answer.take():
                yield piece
            if answer.done:
                break
