"""Model: a loaded checkpoint on a backend, with the calls that users make."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, cast, overload

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheManager, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.engine.generation import Generation
from mistral_portable.engine.stream import TextStreamer
from mistral_portable.errors import InputError, TokenizerError
from mistral_portable.executor import Program
from mistral_portable.sampling import SamplingParams
from mistral_portable.tokenizer import Tokenizer

__all__ = ["Messages", "Model", "Prompt"]

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int] | NDArray[np.integer[Any]] | Messages
"""Text, token ids, or chat messages (`{"role": "user", "content": "..."}`)."""


class Model:
    """Made by `load`. Calls from several threads are safe: steps take turns.

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
        if chunk is not None and not 1 <= chunk <= spec.max_chunk:
            raise InputError(f"chunk={chunk} must be from 1 to {spec.max_chunk}")
        if len(token_ids) and isinstance(token_ids[0], Sequence | np.ndarray):
            sequences = [self._checked(ids) for ids in cast(Sequence[Sequence[int]], token_ids)]
            waves = [sequences[i : i + spec.max_lanes] for i in range(0, len(sequences), spec.max_lanes)]
            return [rows for wave in waves for rows in self._teacher_force(wave, chunk)]
        return self._teacher_force([self._checked(token_ids)], chunk)[0]

    @contextmanager
    def lane(self) -> Iterator[int]:
        """A lane of the cache for the duration of a `with` block. Raises CacheError if all are taken."""
        with self._turn:
            lane = self.manager.open()
        try:
            yield lane
        finally:
            with self._turn:
                self.manager.close(lane)

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run one step: logits float32 [R, vocab_size] of the rows that the chunks ask for."""
        with self._turn:
            logits = self.program.step(self.manager.plan(chunks))["logits"]
        return logits.astype(np.float32, copy=False)  # float64 programs return float64

    def close(self) -> None:
        """Release the executor's threads and memory."""
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
        if not isinstance(token_ids, Sequence | np.ndarray) or getattr(token_ids, "ndim", 1) != 1:
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
        spec = self.manager.spec
        results: list[list[NDArray[np.float32]]] = [[] for _ in sequences]
        with self._turn:
            lanes = [self.manager.open() for _ in sequences]
            try:
                while active := [s for s, ids in enumerate(sequences) if self.manager.length(lanes[s]) < len(ids)]:
                    size = chunk or max(1, spec.max_chunk // len(active))
                    chunks = []
                    for s in active:
                        begin = self.manager.length(lanes[s])
                        tokens = sequences[s][begin : begin + size]
                        chunks.append(Chunk(lanes[s], tokens, range(len(tokens))))
                    plan = self.manager.plan(chunks)
                    logits = self.program.step(plan)["logits"]
                    for i, s in enumerate(active):
                        results[s].append(logits[plan.starts[i] : plan.starts[i + 1]])
            finally:
                for lane in lanes:
                    self.manager.close(lane)
        return [np.concatenate(rows).astype(np.float32) for rows in results]
