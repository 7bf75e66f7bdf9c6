"""Measure the speed of any engine that can append tokens to sequences.

This library's models are one such engine (`ModelEngine`); `tools/bench.py` runs others with the same steps.
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
from mistral_portable.engine.chunks import CHUNK
from mistral_portable.engine.generation import peak_memory_bytes
from mistral_portable.errors import InputError

__all__ = [
    "STANDARD",
    "Engine",
    "Measurement",
    "ModelEngine",
    "Spread",
    "is_measurement",
    "measure",
    "obstacle",
    "parse",
    "prepare",
]

STANDARD = (
    *("prefill:128", "prefill:512", "prefill:2048"),
    *("decode:0", "decode:4096", "decode:16384"),
    *("batch:4", "batch:8", "batch:16"),
)
"""The measurements that are taken by default, as text for `parse`."""


@dataclass(frozen=True)
class Measurement:
    """Append `tokens` tokens, `chunk` at a time, to each of `sequences` sequences of `depth` tokens.

    `prefill:2048` appends 2048 tokens to an empty sequence, in steps of 512 or as the executor likes them;
    `prefill:512@8192` appends 512 to a sequence of 8192. `decode:4096` appends one token at a time to a sequence of
    4096. `batch:8` appends one token at a time to each of eight empty sequences, `batch:8@4096` to eight of 4096
    tokens. `verify:8` appends 8 at a time to an empty sequence, and wants the logits of all (`every_row`), as a step
    does that tries 7 drafted tokens.
    """

    name: str
    sequences: int = 1
    depth: int = 0
    tokens: int = 1
    chunk: int = 1
    every_row: bool = False

    def rate(self, seconds: float) -> float:
        """Tokens per second of all sequences together, if they took `seconds`."""
        return self.sequences * self.tokens / seconds

    def room(self, repeats: int) -> int:
        """Positions that a sequence needs. At a depth, each repetition continues where the one before ended."""
        return self.depth + self.chunk + repeats * self.tokens if self.depth else self.tokens


@dataclass(frozen=True)
class Spread:
    """The median, the least and the greatest of some figures."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """Summarize figures, of which there is at least one."""
        return cls(median(figures), min(figures), max(figures))


class Engine(Protocol):
    """An engine: it holds sequences, and each step appends tokens to all of them."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids; ids are below it."""

    @property
    def max_context(self) -> int:
        """The most positions of a sequence."""

    def reset(self, sequences: int, room: int) -> None:
        """Discard all sequences and begin `sequences` empty ones of up to `room` tokens."""

    @property
    def peak_memory_bytes(self) -> int:
        """The peak memory so far; 0 where the system does not report it."""

    def step(self, chunks: Sequence[Sequence[int]], rows: int) -> None:
        """Append a chunk to each sequence, and wait for the logits of each chunk's last `rows` tokens, if not 0."""


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

    def step(self, chunks: Sequence[Sequence[int]], rows: int) -> None:
        lanes = zip(self._lanes, chunks, strict=True)
        self.model.step([Chunk(lane, chunk, range(len(chunk) - rows, len(chunk))) for lane, chunk in lanes])


def parse(text: str, tokens: int, chunk: int = CHUNK) -> Measurement:
    """Parse `prefill:N[@DEPTH]`, `decode:DEPTH`, `batch:N[@DEPTH]` or `verify:N[@DEPTH]`; all but the first append
    `tokens` tokens, the last one at least N. chunk: tokens of a step that reads a prompt.

    Raises InputError for any other text.
    """
    match = re.fullmatch(r"(prefill|decode|batch|verify):(\d{1,7})(?:@(\d{1,7}))?", text, re.ASCII)
    if not match or (match[1] != "decode" and int(match[2]) == 0) or (match[3] and match[1] == "decode"):
        raise InputError(
            f"{text!r} is not prefill:TOKENS[@DEPTH], decode:DEPTH, batch:SEQUENCES[@DEPTH] or verify:TOKENS[@DEPTH]"
        )
    kind, number = match[1], int(match[2])
    if kind == "prefill":
        return Measurement(text, depth=int(match[3] or 0), tokens=number, chunk=min(number, chunk))
    if kind == "decode":
        return Measurement(text, depth=number, tokens=tokens)
    if kind == "verify":
        if number > CHUNK:
            raise InputError(f"{text!r}: at most {CHUNK} tokens are verified in a step")
        steps = max(1, tokens // number)
        return Measurement(text, depth=int(match[3] or 0), tokens=number * steps, chunk=number, every_row=True)
    return Measurement(text, sequences=number, depth=int(match[3] or 0), tokens=tokens)


def is_measurement(text: str) -> bool:
    """Whether a text is meant for `parse`, as "prefill:512" is, right or wrong."""
    return text.startswith(("prefill:", "decode:", "batch:", "verify:"))


def obstacle(engine: Engine, measurement: Measurement, repeats: int) -> str | None:
    """The reason why the engine cannot take the measurement; None if it can."""
    room = measurement.room(repeats)
    if room > engine.max_context:
        return f"needs {room} positions, the context holds {engine.max_context}"
    return None


def prepare(engine: Engine, measurement: Measurement, repeats: int) -> None:
    """Fill the sequences to the depth and take a step, so that the measured ones do nothing for the first time."""
    engine.reset(measurement.sequences, measurement.room(repeats))
    _append(engine, measurement.sequences, measurement.depth, CHUNK)
    _append(engine, measurement.sequences, measurement.chunk, measurement.chunk, measurement.every_row)


def measure(engine: Engine, measurement: Measurement, repeats: int) -> float:
    """Run one repetition, after `prepare`; its seconds."""
    if measurement.depth == 0:
        engine.reset(measurement.sequences, measurement.room(repeats))
    return _append(engine, measurement.sequences, measurement.tokens, measurement.chunk, measurement.every_row)


def _append(engine: Engine, sequences: int, count: int, chunk: int, every_row: bool = False) -> float:
    """Append `count` random tokens to each sequence; the seconds it took.

    Logits are computed as in generation: after each decoded token, and after the last chunk of a prompt; or of all
    tokens.
    """
    tokens = np.random.default_rng(0).integers(engine.vocab_size, size=(sequences, count)).tolist()
    steps = [[row[start : start + chunk] for row in tokens] for start in range(0, count, chunk)]
    begin = time.perf_counter()
    for step in steps:
        engine.step(step, len(step[0]) if every_row else int(chunk == 1 or step is steps[-1]))
    return time.perf_counter() - begin
