"""The tape: a list of instructions over buffers, and its memory layout.

An instruction is a kernel and its arguments, which are int64 numbers or places in buffers. It lists the buffers that it
reads and writes; from these follow the points where all threads must wait for each other (`set_waits`) and which
buffers may share memory (`lay_out`).
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

    first, last: the first and the last phase in which it is in use (see `set_waits`).
    """

    rows: str
    stride: int
    first: int = sys.maxsize
    last: int = -1

    def size(self, tokens: int, rows: int) -> int:
        """Bytes in a step of this many tokens and requested rows, for whole groups of rows and whole cache lines."""
        return round_up(self.stride * round_up(tokens if self.rows == "T" else rows, TOKEN_GROUP), _LINE)


@dataclass(frozen=True)
class Place:
    """An address in a buffer, `offset` bytes from its start."""

    buffer: Buffer
    offset: int = 0


Argument = int | Place


@dataclass
class Instruction:
    """A call of the kernel with this name. reads, writes: buffers and other resources, compared by equality.

    wait: whether all threads must have finished it before the next instruction.
    """

    kernel: str
    arguments: Sequence[Argument]
    reads: Sequence[object]
    writes: Sequence[object]
    wait: bool = True


@dataclass(frozen=True)
class Layout:
    """A tape that is ready to run.

    tape: int64 [n, 3] at `address` (see `kernels/tape.py`). arguments, counters: the arrays that it points to.
    offsets: where each buffer begins in `memory`, in bytes.
    """

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
    """The bits of a float64 as an int64."""
    return int(np.float64(number).view(np.int64))


def set_waits(instructions: Sequence[Instruction]) -> None:
    """Set `wait` of each instruction, and the phases in which each buffer is in use.

    A wait is left out where the next instruction neither reads nor writes what the instructions since the last wait
    wrote, nor writes what they read. A phase is the stretch of instructions between two waits.
    """
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
    """Allocate memory for a step of at most this many tokens and requested rows, and write the tape.

    values: buffers that the host reads or writes besides those of the instructions. kernels: the kernels' addresses.
    """
    used = [buffer for instruction in instructions for buffer in (*instruction.reads, *instruction.writes)]
    buffers = dict.fromkeys([*values, *(buffer for buffer in used if isinstance(buffer, Buffer))])
    offsets, size = _plan(buffers, tokens, rows)
    memory = np.empty(size + _LINE, np.uint8)
    start = memory.ctypes.data
    offsets = {buffer: offset + round_up(start, _LINE) - start for buffer, offset in offsets.items()}
    counters = np.zeros((len(instructions), _LINE // 8), np.int64)  # a cache line each, against false sharing
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
    """Offsets of the buffers, and the bytes in all.

    The largest buffers come first, each at the lowest offset that no buffer in use at the same time takes.
    """
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
