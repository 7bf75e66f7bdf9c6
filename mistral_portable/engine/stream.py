"""Streams: one answer as it is made, an iterator over pieces of text or over deltas, for threads and for coroutines."""

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import aclosing, closing
from types import TracebackType
from typing import Self

from mistral_portable.answers import CallEnd, Content, Delta, Parser, join_deltas
from mistral_portable.engine.generation import Generation, Timings, peak_memory_bytes
from mistral_portable.engine.loop import Loop
from mistral_portable.engine.request import Completion
from mistral_portable.sampling import Sampled, StopMatcher

__all__ = ["Answer", "AsyncTextStreamer", "TextStreamer"]


class Answer:
    """A completion, and the deltas that have been made of its tokens so far."""

    def __init__(
        self,
        completion: Completion,
        ends: Collection[int],
        parser: Parser | None,
        load_s: float,
        *,
        one_call: bool = False,
    ) -> None:
        """ends: the ids that end the answer, with reason "stop". parser: makes deltas of its tokens; None for
        checkpoints without a tokenizer. load_s: seconds, for the timings. one_call: whether the answer ends behind its
        first tool call."""
        params = completion.sampler.params
        self.completion = completion
        self._prompt_tokens = len(completion.tokens)
        self._ends = ends
        self._parser = parser
        self._load_s = load_s
        self._one_call = one_call
        self._stops = StopMatcher(params.stop)
        self._min_tokens = params.min_tokens
        self._wants_logprobs = params.logprobs is not None
        self._deltas: list[Delta] = []
        self._sampled: list[Sampled] = []
        self._finish_reason = ""
        self._ended_within = False  # by a stop string or a call, whatever the model would write behind it

    @property
    def done(self) -> bool:
        """Whether the last token has been taken, or a stop string has ended the text."""
        return bool(self._finish_reason)

    @property
    def sampled(self) -> Sequence[Sampled]:
        """The tokens that have been taken, the one that ended the text included."""
        return self._sampled

    def take(self) -> list[Delta]:
        """Take the next token; return the deltas that are final now. Raises the completion's error.

        Stop strings are looked for in content alone, behind its first `min_tokens`, and end the answer there; they are
        none across a tool call. So does the first call, if it must be the only one.
        """
        sampled = self.completion.next()
        self._sampled.append(sampled)
        final = list[Delta]()
        if sampled.token in self._ends:
            self._finish_reason = "stop"
        elif self._parser is not None:
            final = self._up_to_end(self._parser.push(sampled.token))
        if not self.done and len(self._sampled) == self.completion.limit:
            self._finish_reason = "length"
        if self.done and not self._ended_within and self._parser is not None:
            final += self._up_to_end(self._parser.flush())
            final += _content(self._stops.flush())
        self._deltas += final
        return final

    @property
    def generation(self) -> Generation:
        """The parts, tokens and timings so far."""
        completion = self.completion
        parts = join_deltas(self._deltas)
        return Generation(
            text=parts.text,
            reasoning=parts.reasoning,
            tool_calls=parts.tool_calls,
            call_error=parts.call_error,
            stop_string=self._stops.matched,
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
                drafted_tokens=completion.drafted,
                accepted_tokens=completion.accepted,
            ),
        )

    def _up_to_end(self, deltas: Iterable[Delta]) -> list[Delta]:
        """The deltas with what the stop strings let through of their content; the answer ends where one is found, or
        behind the call that must be the only one."""
        final = list[Delta]()
        for delta in deltas:
            if isinstance(delta, Content):
                matched = len(self._sampled) > self._min_tokens
                final += _content(self._stops.push(delta.text) if matched else delta.text)
            else:
                final += [*_content(self._stops.flush()), delta]
            if self._stops.matched is not None or (self._one_call and isinstance(delta, CallEnd)):
                self._finish_reason = "stop"
                self._ended_within = True
                break
        return final


class TextStreamer:
    """Iterate for pieces of text, each final: no broken characters, nothing of a stop string. `deltas()` iterates over
    the same answer with all that it holds: content, reasoning and tool calls.

    `generation` is what there is so far, also after an interruption. The cache lane is given back at the end of
    the iteration, on an error, when the streamer is dropped, and by `close()` or the end of a `with` block.
    """

    def __init__(self, loop: Loop, answer: Answer) -> None:
        """Made by `Model.stream`."""
        # The generator does not refer to the streamer: one that is dropped is freed at once.
        self._answer = answer
        self._made = _deltas(loop, answer)

    @property
    def generation(self) -> Generation:
        """The parts, tokens and timings so far."""
        return self._answer.generation

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(delta.text for delta in self._made if isinstance(delta, Content))

    def deltas(self) -> Iterator[Delta]:
        """Iterate over the answer's deltas (`mistral_portable.answers`) as they become final.

        Content, Reasoning, CallBegin, CallArguments, CallEnd and CallFailed come in the order in which the model wrote
        them; the Content is what iterating over the streamer gives. Only answers to chats have anything else.

        >>> for delta in model.stream(messages, tools=tools).deltas():
        ...     match delta:
        ...         case Content(text): ...
        ...         case Reasoning(text): ...
        ...         case CallBegin(index, id, name): ...
        ...         case CallArguments(index, text): ...
        ...         case CallEnd(index): ...
        ...         case CallFailed(index, reason): ...

        Closing the iterator closes the streamer. Raises the errors of `Model.generate`.
        """
        return self._made

    def close(self) -> None:
        """Stop generating and give the cache lane back."""
        self._made.close()

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
        self._made = _adeltas(loop, answer)

    @property
    def generation(self) -> Generation:
        """The parts, tokens and timings so far."""
        return self._answer.generation

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        async for delta in self._made:
            if isinstance(delta, Content):
                return delta.text
        raise StopAsyncIteration

    def deltas(self) -> AsyncIterator[Delta]:
        """Iterate over the answer's deltas: `async for delta in streamer.deltas()`; see `TextStreamer.deltas`."""
        return self._made

    async def aclose(self) -> None:
        """Stop generating and give the cache lane back."""
        await self._made.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _deltas(loop: Loop, answer: Answer) -> Generator[Delta, None, None]:
    with closing(loop.run([answer.completion])) as made:
        for _ in made:
            yield from answer.take()
            if answer.done:
                break


async def _adeltas(loop: Loop, answer: Answer) -> AsyncGenerator[Delta, None]:
    async with aclosing(loop.arun([answer.completion])) as made:
        async for _ in made:
            for delta in answer.take():
                yield delta
            if answer.done:
                break


def _content(text: str) -> list[Delta]:
    return [Content(text)] if text else []
