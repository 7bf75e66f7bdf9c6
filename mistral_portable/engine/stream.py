"""TextStreamer: one sequence's text as it is made, an iterator over pieces."""

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from types import TracebackType
from typing import Self

from mistral_portable.engine.core import Core
from mistral_portable.engine.decode import decode
from mistral_portable.engine.generation import Generation, Timings, peak_memory_bytes
from mistral_portable.sampling import Sampled, SamplingParams, StopMatcher
from mistral_portable.tokenizer import TextStream

__all__ = ["TextStreamer"]


class TextStreamer:
    """Iterate for pieces of text, each final: no broken characters, nothing of a stop string.

    `generation` is what there is so far, also after an interruption. The cache lane is given back at the end of
    the iteration, on an error, when the streamer is dropped, and by `close()` or the end of a `with` block.
    """

    def __init__(
        self,
        core: Core,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        ends: Collection[int],
        text: TextStream | None,
        load_s: float,
    ) -> None:
        """Made by `Model.stream`.

        prompt: token ids within the context. ends: the ids that end the text, with reason "stop". text: the tokenizer's
        stream behind the prompt; None for checkpoints without a tokenizer. load_s: seconds, for the timings.
        """
        # The generator refers to the run, not to the streamer: a streamer that is dropped is freed at once.
        self._run = _Run(core, prompt, params, ends, text, load_s)
        self._pieces = self._run.pieces()

    @property
    def generation(self) -> Generation:
        """The text, tokens and timings so far."""
        return self._run.generation()

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


class _Run:
    """The generate loop and what it has made so far."""

    def __init__(
        self,
        core: Core,
        prompt: Sequence[int],
        params: SamplingParams,
        ends: Collection[int],
        pieces: TextStream | None,
        load_s: float,
    ) -> None:
        self.core = core
        self.prompt = prompt
        self.params = params
        self.ends = ends
        self.text_stream = pieces
        self.load_s = load_s
        self.text: list[str] = []
        self.sampled: list[Sampled] = []
        self.finish_reason = ""
        self.prefill_s = self.decode_s = 0.0

    def generation(self) -> Generation:
        """The result so far."""
        return Generation(
            text="".join(self.text),
            tokens=tuple(sampled.token for sampled in self.sampled),
            finish_reason=self.finish_reason,
            logprobs=None if self.params.logprobs is None else tuple(self.sampled),
            timings=Timings(
                load_s=self.load_s,
                prefill_tokens=len(self.prompt),
                prefill_s=self.prefill_s,
                decode_tokens=max(0, len(self.sampled) - 1),
                decode_s=self.decode_s,
                peak_memory_bytes=peak_memory_bytes(),
            ),
        )

    def pieces(self) -> Generator[str, None, None]:
        """Decode until something ends it; yields text that is final and not empty."""
        core, params, pieces = self.core, self.params, self.text_stream
        stops = StopMatcher(params.stop)
        with core.lane() as lane:
            for sampled in self._timed(decode(core, lane, self.prompt, params)):
                self.sampled.append(sampled)
                ended = sampled.token in self.ends
                if pieces is not None and not ended:
                    yield from self._show(stops.push(pieces.push(sampled.token)))
                if ended or stops.matched is not None:
                    self.finish_reason = "stop"
                    break
            else:
                self.finish_reason = "length"
        if pieces is not None:
            text = stops.push(pieces.flush())
            if stops.matched is not None:
                self.finish_reason = "stop"
            yield from self._show(text + stops.flush())

    def _timed(self, tokens: Iterator[Sampled]) -> Iterator[Sampled]:
        """The first token's time is the prompt's."""
        begin = time.perf_counter()
        for number, sampled in enumerate(tokens):
            if number:
                self.decode_s += time.perf_counter() - begin
            else:
                self.prefill_s = time.perf_counter() - begin
            yield sampled
            begin = time.perf_counter()

    def _show(self, text: str) -> Iterator[str]:
        if text:
            self.text.append(text)
            yield text
