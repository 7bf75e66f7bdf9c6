"""Model: a loaded checkpoint on a backend, with the calls that users make."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import GreedyProgram, GreedyStep, Program
from mistral_portable.cache import CacheManager, Chunk, StepPlan
from mistral_portable.config import MistralConfig
from mistral_portable.engine.generation import Generation
from mistral_portable.engine.stream import TextStreamer
from mistral_portable.errors import InputError, TokenizerError
from mistral_portable.sampling import SamplingParams
from mistral_portable.tokenizer import TextStream, Tokenizer

__all__ = ["Messages", "Model", "Prompt"]

T = TypeVar("T")

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int] | NDArray[np.integer[Any]] | Messages
"""Text, token ids, or chat messages (`{"role": "user", "content": "..."}`)."""


class Model:
    """Made by `load`. Calls from several threads are safe: steps take turns, and `load(max_lanes=...)` sequences can
    be open at a time (CacheError beyond that).

    `config`, `backend` (its name), `program`, `manager`, `source` (the checkpoint's path) are for reading.
    """

    def __init__(
        self,
        *,
        config: MistralConfig,
        backend: str,
        program: Program,
        manager: CacheManager,
        tokenizer: Tokenizer | None,
        source: str,
        load_s: float,
    ) -> None:
        self.config = config
        self.backend = backend
        self.program = program
        self.manager = manager
        self.source = source
        self.load_s = load_s
        self._tokenizer = tokenizer
        self._closed = False
        self._turn = threading.Lock()

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. Raises TokenizerError if it has none."""
        if self._tokenizer is None:
            raise TokenizerError(
                f"{self.source} has no tokenizer: put tokenizer.model or tekken.json beside the weights, "
                f"or pass token ids instead of text"
            )
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    @property
    def end_tokens(self) -> set[int]:
        """The ids that end a text: the config's and the tokenizer's."""
        own = {self._tokenizer.eos_id} if self._tokenizer else set()
        return own | set(self.config.eos_token_ids)

    @property
    def max_context(self) -> int:
        """Tokens that a sequence, prompt and answer together, may reach."""
        return self.manager.spec.max_context

    def generate(self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Any) -> Generation:
        """Continue `prompt`. `sampling` are fields of SamplingParams: `max_tokens=64, temperature=0`.

        Raises InputError for an empty or too long prompt, an id outside the vocabulary or a bad sampling value.
        """
        with self._streamer(prompt, params, sampling) as streamer:
            for _ in streamer:
                pass
            return streamer.generation

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Any) -> TextStreamer:
        """As `generate`, but an iterator over pieces of text as they are ready; see TextStreamer."""
        return self._streamer(prompt, params, sampling)

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **sampling: Any,
    ) -> Generation:
        """Answer the last message. `tools` are function schemas, as in OpenAI's and Mistral's API."""
        return self.generate(self.tokenizer.chat(messages, tools=tools), params, **sampling)

    @overload
    def logits(self, token_ids: Sequence[int], chunk: int | None = None) -> NDArray[np.float32]: ...
    @overload
    def logits(self, token_ids: Sequence[Sequence[int]], chunk: int | None = None) -> list[NDArray[np.float32]]: ...
    def logits(
        self, token_ids: Sequence[int] | Sequence[Sequence[int]], chunk: int | None = None
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Teacher-forced logits, float32 [T, vocab_size]: row t predicts token t + 1.

        A list of sequences gives a list of arrays, run as one ragged batch. `chunk` is the number of tokens per
        sequence and step (default: as many as the cache takes); the result does not depend on it.
        """
        spec = self.manager.spec
        if chunk is not None and not (isinstance(chunk, int) and 1 <= chunk <= spec.max_chunk):
            raise InputError(f"chunk={chunk!r} must be an integer from 1 to {spec.max_chunk}")
        nested = isinstance(token_ids, Sequence | np.ndarray) and len(token_ids) > 0
        if nested and isinstance(token_ids[0], Sequence | np.ndarray) and not isinstance(token_ids[0], str):
            sequences = [self._checked(ids) for ids in cast(Sequence[Sequence[int]], token_ids)]
            return self._teacher_force(sequences, chunk)
        return self._teacher_force([self._checked(token_ids)], chunk)[0]

    @contextmanager
    def lane(self) -> Iterator[int]:
        """A lane of the cache for the duration of a `with` block. Raises CacheError if all are taken."""
        lane = self.manager.open()
        try:
            yield lane
        finally:
            # Not under `_turn`: the garbage collector may run this in the thread that is in the middle of a step.
            self.manager.close(lane)

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run one step: logits float32 [R, vocab_size] of the rows that the chunks ask for.

        If it fails, all sequences are as they were before it.
        """
        logits = self._run(chunks, self.program.step)["logits"]
        return logits.astype(np.float32, copy=False)  # float64 programs return float64

    def begin_greedy(self, chunks: Sequence[Chunk], after: GreedyStep | None = None) -> GreedyStep:
        """Begin one step, on a backend whose `program` is a GreedyProgram; see there. Fails as `step`."""
        program = self.program
        if not isinstance(program, GreedyProgram):
            raise InputError(f"the {self.backend} backend leaves the likeliest token to the sampler: use step")
        return self._run(chunks, lambda plan: program.begin_greedy(plan, after))

    def _run(self, chunks: Sequence[Chunk], step: Callable[[StepPlan], T]) -> T:
        """Run the chunks' plan, one step at a time; undone if that fails."""
        with self._turn:
            if self._closed:
                raise InputError("the model is closed: load it again")
            plan = self.manager.plan(chunks)
            try:
                return step(plan)
            except BaseException:  # no memory for more keys, say: what this step has written does not count
                for lane, position in zip(
                    plan.lanes.tolist(), plan.positions[plan.query_starts[:-1]].tolist(), strict=True
                ):
                    self.manager.rollback(lane, position)
                raise

    def text_stream(self, after: Sequence[int]) -> TextStream | None:
        """The tokenizer's stream behind the tokens `after`; None if there is no tokenizer."""
        if self._tokenizer is None:
            return None
        return self._tokenizer.stream([token for token in after if token < self._tokenizer.vocab_size])

    def close(self) -> None:
        """Release the executor's threads and memory; the model cannot run afterwards."""
        with self._turn:
            self._closed = True
            self.program.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _streamer(self, prompt: Prompt, params: SamplingParams | None, sampling: Mapping[str, Any]) -> TextStreamer:
        try:
            params = replace(params or SamplingParams(), **sampling)
        except TypeError as error:
            raise InputError(f"unknown sampling option: {error}") from error
        params.check_vocab(self.config.vocab_size)
        return TextStreamer(self, self._encode(prompt), params)

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if not prompt:
                raise InputError("the prompt is empty: give some text")
            return self._checked(self.tokenizer.encode(prompt))
        if isinstance(prompt, Sequence) and len(prompt) and isinstance(prompt[0], Mapping):
            return self._checked(self.tokenizer.chat(cast(Messages, prompt)))
        return self._checked(prompt)

    def _checked(self, token_ids: Any) -> list[int]:
        """Token ids as ints, within the vocabulary and the context."""
        wrong = isinstance(token_ids, str | bytes | bytearray) or getattr(token_ids, "ndim", 1) != 1
        if wrong or not isinstance(token_ids, Sequence | np.ndarray):
            raise InputError(f"a prompt is text, a list of token ids, or a list of messages, not {token_ids!r:.40}")
        if not len(token_ids):
            raise InputError("the prompt is empty: give at least one token")
        if len(token_ids) > self.max_context:
            raise InputError(
                f"the prompt has {len(token_ids)} tokens, the context holds {self.max_context}: "
                f"shorten it or raise max_context"
            )
        for token in token_ids:
            if isinstance(token, bool) or not isinstance(token, int | np.integer):
                raise InputError(f"token id {token!r} is not an integer")
            if not 0 <= token < self.config.vocab_size:
                raise InputError(f"token id {token} is outside the vocabulary of {self.config.vocab_size}")
        return [int(token) for token in token_ids]

    def _teacher_force(self, sequences: list[list[int]], chunk: int | None) -> list[NDArray[np.float32]]:
        """Logits of sequences that run together; as many at a time as there are free lanes."""
        if not sequences:
            return []
        spec = self.manager.spec
        together = sequences[: max(1, spec.max_lanes - len(self.manager.lanes))]
        results: list[list[NDArray[np.float32]]] = [[] for _ in together]
        with ExitStack() as stack:
            lanes = [stack.enter_context(self.lane()) for _ in together]
            while active := [s for s, ids in enumerate(together) if self.manager.length(lanes[s]) < len(ids)]:
                size = chunk or max(1, spec.max_chunk // len(active))
                parts = []
                for s in active:
                    begin = self.manager.length(lanes[s])
                    parts.append(together[s][begin : begin + size])
                rows = self.step(
                    [Chunk(lanes[s], part, range(len(part))) for s, part in zip(active, parts, strict=True)]
                )
                ends = np.cumsum([len(part) for part in parts])
                for s, some in zip(active, np.split(rows, ends[:-1]), strict=True):
                    results[s].append(some)
        done = [np.concatenate(rows) for rows in results]
        return done + self._teacher_force(sequences[len(together) :], chunk)
