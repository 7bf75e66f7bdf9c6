"""Model: a loaded checkpoint on a backend, with the calls that users make."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, cast, overload

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import Program
from mistral_portable.cache import CacheManager, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.engine.core import Core
from mistral_portable.engine.generation import Generation
from mistral_portable.engine.stream import TextStreamer
from mistral_portable.errors import InputError, TokenizerError
from mistral_portable.sampling import SamplingParams
from mistral_portable.tokenizer import Tokenizer

__all__ = ["Messages", "Model", "Prompt"]

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int] | NDArray[np.integer[Any]] | Messages
"""Text, token ids, or chat messages (`{"role": "user", "content": "..."}`)."""


class Model:
    """A loaded checkpoint, made by `load`. Calls from several threads are safe: their steps take turns, and
    `load(max_lanes=...)` sequences can be open at a time (BusyError beyond that).

    `config`, `backend` (its name), `core` (program, cache manager and lock), `source` (the checkpoint's path) and
    `load_s` (seconds) are for reading.
    """

    def __init__(
        self,
        *,
        config: MistralConfig,
        backend: str,
        core: Core,
        tokenizer: Tokenizer | None,
        source: str,
        load_s: float,
    ) -> None:
        self.config = config
        self.backend = backend
        self.core = core
        self.source = source
        self.load_s = load_s
        self._tokenizer = tokenizer

    @property
    def program(self) -> Program:
        """The executor's program."""
        return self.core.program

    @property
    def manager(self) -> CacheManager:
        """The cache's integers."""
        return self.core.manager

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
        """Whether text can be given and is returned; else token ids only."""
        return self._tokenizer is not None

    @property
    def end_tokens(self) -> set[int]:
        """The ids that end a text: the config's and the tokenizer's."""
        own = {self._tokenizer.eos_id} if self._tokenizer else set()
        return own | set(self.config.eos_token_ids)

    @property
    def max_context(self) -> int:
        """Tokens that a sequence, prompt and answer together, may reach."""
        return self.core.max_context

    def generate(self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Any) -> Generation:
        """Continue `prompt`. `sampling` are fields of SamplingParams: `max_tokens=64, temperature=0`.

        Raises InputError for an empty or too long prompt, an id outside the vocabulary or a bad sampling value,
        BusyError if all lanes are taken, CapacityError if the cache does not fit into memory, NumericsError for logits
        that are not finite, ClosedError after `close`.
        """
        with self._streamer(prompt, params, sampling) as streamer:
            for _ in streamer:
                pass
            return streamer.generation

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **sampling: Any) -> TextStreamer:
        """Continue `prompt`, yielding pieces of text as they are ready (TextStreamer). Errors: those of `generate`."""
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
        sequence and step (default: as many as the cache takes); the result does not depend on it, except for rounding
        where the program is not `batch_invariant`. Calls from several threads take turns. Raises InputError for ids or
        chunks out of range, BusyError if others hold every lane.
        """
        spec = self.manager.spec
        if chunk is not None and not (isinstance(chunk, int) and 1 <= chunk <= spec.max_chunk):
            raise InputError(f"chunk={chunk!r} must be an integer from 1 to {spec.max_chunk}")
        nested = isinstance(token_ids, Sequence | np.ndarray) and len(token_ids) > 0
        if nested and isinstance(token_ids[0], Sequence | np.ndarray) and not isinstance(token_ids[0], str):
            sequences = [self._checked(ids) for ids in cast(Sequence[Sequence[int]], token_ids)]
            return self.core.logits(sequences, chunk)
        return self.core.logits([self._checked(token_ids)], chunk)[0]

    def lane(self) -> AbstractContextManager[int]:
        """A lane of the cache for the duration of a `with` block. Raises BusyError if all are taken."""
        return self.core.lane()

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run one step: logits float32 [R, vocab_size] of the rows that the chunks request.

        If it fails, all sequences are as they were before it.
        """
        return self.core.step(chunks)

    def close(self) -> None:
        """Release the executor's threads and memory; later calls raise ClosedError."""
        self.core.close()

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
        if params.stop and self._tokenizer is None:
            raise InputError("stop strings need a tokenizer, and this checkpoint has none: use stop_token_ids")
        tokens = self._encode(prompt)
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else self.end_tokens)
        text = None if self._tokenizer is None else self._tokenizer.stream(tokens)
        return TextStreamer(self.core, tokens, params, ends=ends, text=text, load_s=self.load_s)

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
