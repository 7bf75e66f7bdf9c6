"""The tape: instructions over buffers, before and after the buffers have addresses.

An instruction is a kernel and its arguments, int64 numbers or places in buffers. It says which buffers it reads and
writes, from which follows where all threads must wait for each other, and which buffers may share memory.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mistral_portable_numba.layouts import TOKEN_GROUP, round_up

__all__ = ["Argument", "Buffer", "Instruction", "Layout", "Place", "bits", "lay_out", "set_waits"]

_LINE = 64  # bytes of a cache line


@dataclass(eq=False)
class Buffer:
    """Rows of `stride` bytes, one per token of the step ("T") or per requested row ("R").

    first, last: the phases in which it is in use (see `set_waits`).
    """

    rows: str
    stride: int
    first: int = sys.maxsize
    last: int = -1

    def size(self, tokens: int, rows: int) -> int:
        """Bytes in a step of so many tokens and requested rows, in whole groups of them and whole lines."""
        return round_up(self.stride * round_up(tokens if self.rows == "T" else rows, TOKEN_GROUP), _LINE)


@dataclass(frozen=True)
class Place:
    """An address within a buffer."""

    buffer: Buffer
    offset: int = 0


Argument = int | Place


@dataclass
class Instruction:
    """kernel: its name. wait: whether all threads must have finished it before the next one."""

    kernel: str
    arguments: Sequence[Argument]
    reads: Sequence[object]
    writes: Sequence[object]
    wait: bool = True


@dataclass(frozen=True)
class Layout:
    """A tape ready to run: `tape` int64 [n, 3] (see `kernels/tape.py`) at `address`, `arguments` and `counters`, which
    it points to, and where every buffer begins in `memory`."""

    tape: NDArray[np.int64]
    address: int
    arguments: NDArray[np.int64]
    counters: NDArray[np.int64]
    offsets: dict[Buffer, int]
    memory: NDArray[np.uint8]

    @property
    def bytes(self) -> int:
        """Bytes of all its arrays."""
        return self.tape.nbytes + self.arguments.nbytes + self.counters.nbytes + self.memory.nbytes


def bits(number: float) -> int:
    """A float64 as an int64 of the same bits."""
    return int(np.float64(number).view(np.int64))


def set_waits(instructions: Sequence[Instruction]) -> None:
    """Let threads run on where the next instruction neither reads nor writes what those since the last wait wrote,
    nor writes what they read; and give every buffer its phases, the stretches between two waits."""
    reads: set[object] = set()
    writes: set[object] = set()
    phase = 0
    for before, instruction in zip([None, *instructions], instructions, strict=False):
        if before is not None:
            reads.update(before.reads)
            writes.update(before.writes)
            touched = {*instruction.reads, *instruction.writes}
            before.wait = bool(touched & writes or reads & set(instruction.writes))
            if before.wait:
                reads, writes, phase = set(), set(), phase + 1
        for buffer in (*instruction.reads, *instruction.writes):
            if isinstance(buffer, Buffer):
                buffer.last = max(buffer.last, phase)
                buffer.first = min(buffer.first, phase)


def lay_out(
    instructions: Sequence[Instruction],
    values: Iterable[Buffer],
    kernels: dict[str, int],
    tokens: int,
    rows: int,
) -> Layout:
    """Give the buffers memory for a step of at most so many tokens and requested rows, and write the tape."""
    used = [buffer for instruction in instructions for buffer in (*instruction.reads, *instruction.writes)]
    buffers = dict.fromkeys([*values, *(buffer for buffer in used if isinstance(buffer, Buffer))])
    offsets, size = _plan(buffers, tokens, rows)
    memory = np.empty(size + _LINE, np.uint8)
    start = memory.ctypes.data
    offsets = {buffer: offset + round_up(start, _LINE) - start for buffer, offset in offsets.items()}
    counters = np.zeros((len(instructions), _LINE // 8), np.int64)  # a line each, so that threads share no other's
    width = 1 + max((len(instruction.arguments) for instruction in instructions), default=0)
    arguments = np.zeros((len(instructions), width), np.int64)
    tape = np.zeros((len(instructions), 3), np.int64)
    for index, instruction in enumerate(instructions):
        arguments[index, 0] = counters[index].ctypes.data
        for place, argument in enumerate(instruction.arguments, 1):
            if isinstance(argument, Place):
                argument = start + offsets[argument.buffer] + argument.offset
            arguments[index, place] = argument
        tape[index] = kernels[instruction.kernel], arguments[index].ctypes.data, instruction.wait
    return Layout(tape, tape.ctypes.data, arguments, counters, offsets, memory)


def _plan(buffers: Iterable[Buffer], tokens: int, rows: int) -> tuple[dict[Buffer, int], int]:
    """Offsets: the largest buffers first, each at the lowest place that none which lives at the same time takes."""
    offsets: dict[Buffer, int] = {}
    end = 0
    for buffer in sorted(buffers, key=lambda buffer: -buffer.size(tokens, rows)):
        size = buffer.size(tokens, rows)
        taken = sorted(
            (offsets[other], offsets[other] + other.size(tokens, rows))
            for other in offsets
            if other.first <= buffer.last and buffer.first <= other.last
        )
        offset = 0
        for start, stop in taken:
            if offset + size <= start:
                break
            offset = max(offset, stop)
        offsets[buffer] = offset
        end = max(end, offset + size)
    return offsets, end
