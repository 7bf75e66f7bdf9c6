"""Speed: what is measured, and how, for anything that can append tokens to sequences.

This library's models are one such engine (`ModelEngine`); `tools/bench.py` puts others beside it, step for step.
"""

import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import numpy as np

from mistral_portable.boundary import OwnMemory
from mistral_portable.cache import Chunk
from mistral_portable.engine import Model
from mistral_portable.engine.generation import peak_memory_bytes
from mistral_portable.errors import InputError

__all__ = ["STANDARD", "Engine", "Measurement", "ModelEngine", "Spread", "measure", "obstacle", "parse", "prepare"]

STANDARD = (
    *("prefill:128", "prefill:512", "prefill:2048"),
    *("decode:0", "decode:4096", "decode:16384"),
    *("batch:4", "batch:8", "batch:16"),
)
"""What is measured if nothing is chosen."""

_CHUNK = 512  # tokens of one prefill step


@dataclass(frozen=True)
class Measurement:
    """Each of `sequences` sequences, with `depth` tokens already, gets `tokens` more, `chunk` at a time.

    `prefill:2048` is one empty sequence that gets 2048 tokens, 512 at a time; `prefill:512@8192` is one of 8192 tokens
    that gets 512. `decode:4096` is one of 4096 tokens that gets some more, one at a time. `batch:8` is eight empty ones
    that get them together, `batch:8@4096` eight of 4096 tokens.
    """

    name: str
    sequences: int = 1
    depth: int = 0
    tokens: int = 1
    chunk: int = 1

    def rate(self, seconds: float) -> float:
        """Tokens per second, of all sequences together."""
        return self.sequences * self.tokens / seconds

    def room(self, repeats: int) -> int:
        """Positions that a sequence needs. At a depth, repetitions go on where the one before has ended."""
        return self.depth + self.chunk + repeats * self.tokens if self.depth else self.tokens


@dataclass(frozen=True)
class Spread:
    """The middle and the ends of some figures."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """Summarize figures, of which there is at least one."""
        return cls(median(figures), min(figures), max(figures))


class Engine(Protocol):
    """Sequences, and steps that append to all of them."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""

    @property
    def max_context(self) -> int:
        """Positions that a sequence may have."""

    def reset(self, sequences: int, room: int) -> None:
        """Forget what there was; from now on there are so many sequences, empty, of up to `room` tokens."""

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory that it has taken so far; 0 where nobody tells."""

    def step(self, chunks: Sequence[Sequence[int]], logits: bool) -> None:
        """Append a chunk to each sequence; with `logits` compute those behind its last token, and wait for them."""


class ModelEngine:
    """A loaded model of this library as an Engine."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.vocab_size = model.config.vocab_size
        self.max_context = model.max_context
        self._stack = ExitStack()
        self._lanes: list[int] = []

    def reset(self, sequences: int, room: int) -> None:
        self._stack.close()
        self._lanes = [self._stack.enter_context(self.model.lane()) for _ in range(sequences)]

    @property
    def peak_memory_bytes(self) -> int:
        program = self.model.program
        return program.peak_memory_bytes if isinstance(program, OwnMemory) else peak_memory_bytes()

    def step(self, chunks: Sequence[Sequence[int]], logits: bool) -> None:
        lanes = zip(self._lanes, chunks, strict=True)
        self.model.step([Chunk(lane, chunk, [len(chunk) - 1] if logits else []) for lane, chunk in lanes])


def parse(text: str, tokens: int) -> Measurement:
    """`prefill:N`, `decode:DEPTH` or `batch:N`, the first and the last also `@DEPTH`; the latter two generate `tokens`.

    Raises InputError.
    """
    match = re.fullmatch(r"(prefill|decode|batch):(\d{1,7})(?:@(\d{1,7}))?", text, re.ASCII)
    if not match or (match[1] != "decode" and int(match[2]) == 0) or (match[3] and match[1] == "decode"):
        raise InputError(f"{text!r} is not prefill:TOKENS[@DEPTH], decode:DEPTH or batch:SEQUENCES[@DEPTH]")
    kind, number = match[1], int(match[2])
    if kind == "prefill":
        return Measurement(text, depth=int(match[3] or 0), tokens=number, chunk=min(number, _CHUNK))
    if kind == "decode":
        return Measurement(text, depth=number, tokens=tokens)
    return Measurement(text, sequences=number, depth=int(match[3] or 0), tokens=tokens)


def obstacle(engine: Engine, measurement: Measurement, repeats: int) -> str | None:
    """Why it cannot be measured; None if it can."""
    room = measurement.room(repeats)
    if room > engine.max_context:
        return f"needs {room} positions, the context holds {engine.max_context}"
    return None


def prepare(engine: Engine, measurement: Measurement, repeats: int) -> None:
    """Fill the sequences to the depth, and take a first step, so that nothing is done for the first time."""
    engine.reset(measurement.sequences, measurement.room(repeats))
    _append(engine, measurement.sequences, measurement.depth, _CHUNK)
    _append(engine, measurement.sequences, measurement.chunk, measurement.chunk)


def measure(engine: Engine, measurement: Measurement, repeats: int) -> float:
    """Seconds of one repetition, after `prepare`."""
    if measurement.depth == 0:
        engine.reset(measurement.sequences, measurement.room(repeats))
    return _append(engine, measurement.sequences, measurement.tokens, measurement.chunk)


def _append(engine: Engine, sequences: int, count: int, chunk: int) -> float:
    """Append `count` random tokens to each sequence; seconds. Logits as when text is generated: none amid a prompt."""
    tokens = np.random.default_rng(0).integers(engine.vocab_size, size=(sequences, count)).tolist()
    steps = [[row[start : start + chunk] for row in tokens] for start in range(0, count, chunk)]
    begin = time.perf_counter()
    for step in steps:
        engine.step(step, logits=chunk == 1 or step is steps[-1])
    return time.perf_counter() - begin
