"""Lockstep: the first of several processes makes a program's calls, and the others make the same, in the same order.

In a step all processes exchange sums: one that left it out would let the others wait for ever, and one that made
another step would add what does not belong together. So the first process alone has callers. It sends each of their
calls to the others, which have nothing to decide: which tokens, in which pages, is all in the plans.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable import boundary
from mistral_portable.boundary import LaneState, Program
from mistral_portable.boundary.process import OwnProcess
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.cache import StepPlan
from mistral_portable.errors import ClosedError, InputError, MistralPortableError
from mistral_portable_torch.processes import Group, LostProcessError, signals_are
from mistral_portable_torch.program import AsynchronousProgram, TorchProgram, TorchStep

__all__ = ["share_program"]

_HEADS = 2  # the axis of heads in arrays of pages
_Call = tuple[str, tuple[Any, ...]]
"""The name of a method of _Part, and its arguments."""


def share_program(make: Callable[[], TorchProgram], group: Group) -> Program:
    """Make this process's part of a program, and return the whole one, in the first process.

    The others do not return: they follow the first one until it closes the program or ends, and end by SystemExit, with
    status 0, or with 1 and without a word if a process was lost in the middle of something: that one says why.
    """
    if group.rank == 0:
        program = make()
        group.least(0)  # waits until all have made theirs
        leading = LeadingAsynchronousProgram if isinstance(program, AsynchronousProgram) else LeadingProgram
        return leading(program, group)
    try:
        program = make()
        group.least(0)
        _follow(program, group)
    except LostProcessError:
        raise SystemExit(1) from None
    raise SystemExit(0)


def _follow(program: TorchProgram, group: Group) -> None:
    """Make the calls that the first process sends. Raises LostProcessError if a process ends in the middle of one.

    torchrun passes SIGINT and SIGTERM to all processes; they are for the first one, which may have answers to end.
    """
    part = _Part(program, group)
    with signals_are(signal.SIG_IGN):
        for method, arguments in _calls(group):
            try:
                getattr(part, method)(*arguments)
            except MistralPortableError as error:
                if _tears(error):
                    raise
    program.close()


def _calls(group: Group) -> Iterator[_Call]:
    with suppress(LostProcessError):  # the first process has ended, without closing the program
        while (call := group.share()) is not None:
            yield call


def _tears(error: BaseException) -> bool:
    """Whether an error may be one process's alone, amid a step. All others follow from what all processes know, and are
    raised in all of them, before they exchange anything."""
    return isinstance(error, ClosedError) or not isinstance(error, MistralPortableError)


class _Part:
    """A process's part in each call."""

    def __init__(self, program: TorchProgram, group: Group) -> None:
        self._program = program
        self._group = group
        self._newest: _Step | None = None

    def step(self, plan: StepPlan, inputs: Inputs) -> Mapping[str, NDArray[np.float32]]:
        """The outputs, in the first process."""
        if self._group.rank == 0:
            return self._program.step(plan, inputs)
        self._program.take_part(plan, inputs)
        return {}

    def submit(self, plan: StepPlan, inputs: Inputs, after: int | None) -> "_Step":
        """after: the number of a step."""
        assert isinstance(self._program, AsynchronousProgram)
        newest = self._newest
        if after is not None and (newest is None or newest.number != after):
            raise InputError("after: where processes share a model, it is the step that was submitted last")
        step = self._program.submit(plan, inputs, after=None if after is None or newest is None else newest.own)
        self._newest = _Step(0 if newest is None else newest.number + 1, step)
        return self._newest

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int]) -> LaneState:
        """Arrays with the heads of all processes: those of a model that is in one piece."""
        parts = self._group.collect(self._program.read_pages(group, pages, blank))
        return {name: np.concatenate([part[name] for part in parts], _HEADS) for name in (parts[0] if parts else ())}

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        self._program.write_pages(group, pages, {name: self._own_heads(array) for name, array in state.items()})

    def _own_heads(self, array: NDArray[Any]) -> NDArray[Any]:
        """This process's of an array [pages, page_size, heads, head_dim]. Any other array stays, and is refused."""
        rank, size = self._group.rank, self._group.size
        if array.ndim <= _HEADS or array.shape[_HEADS] % size:
            return array
        count = array.shape[_HEADS] // size
        return array[:, :, rank * count : (rank + 1) * count]


@dataclass(frozen=True)
class _Step:
    """A step that was submitted, with a number by which other processes know it."""

    number: int
    own: TorchStep

    def tokens(self) -> NDArray[np.int32]:
        return self.own.tokens()


class LeadingProgram:
    """A program of several processes, in the first one. Bytes are those of all processes.

    A thread of its own makes the calls, one after another. So Ctrl-C, which comes in the main thread, ends the waiting
    for a call, but not the call itself, amid which other processes wait for this one.
    """

    batch_invariant = TorchProgram.batch_invariant

    def __init__(self, program: TorchProgram, group: Group) -> None:
        self.precision, self.prompt_chunk = program.precision, program.prompt_chunk
        self._program = program
        self._group = group
        self._part = _Part(program, group)
        self._own = OwnProcess("a model that processes share")
        self._thread = ThreadPoolExecutor(1, "mistral_portable.lockstep")
        self._turn = threading.Lock()
        self._closed = False
        self._loss = ""  # why there are no more calls, although it is not closed

    @property
    def cache_bytes(self) -> int:
        return self._program.cache_bytes * self._group.size

    @property
    def scratch_bytes(self) -> int:
        return self._program.scratch_bytes * self._group.size

    def slot_bytes(self, group: int) -> int:
        return self._program.slot_bytes(group) * self._group.size

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> Mapping[str, NDArray[np.float32]]:
        made: Mapping[str, NDArray[np.float32]] = self._everywhere("step", plan, dict(inputs))
        return made

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        found: LaneState = self._everywhere("read_pages", group, list(pages), list(blank))
        return found

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        self._everywhere("write_pages", group, list(pages), {name: np.asarray(array) for name, array in state.items()})

    def close(self) -> None:
        if self._own.forked:
            return
        with self._turn:
            if not self._closed:
                self._closed = True
                self._thread.submit(self._release)
        self._thread.shutdown()

    def _everywhere(self, method: str, *arguments: Any) -> Any:
        """Let all processes make a call, after those that were made before; return this one's result."""
        self._own.require()
        with self._turn:
            if self._closed:
                raise ClosedError("the program is closed: prepare it again")
            call = self._thread.submit(self._make, method, arguments)
        return call.result()

    def _make(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if self._loss:
            raise ClosedError(self._loss)
        try:
            self._group.share((method, arguments))
            return getattr(self._part, method)(*arguments)
        except BaseException as error:
            if _tears(error):
                self._loss = f"the program is lost ({error}): start all processes again"
                self._group.leave()
            raise

    def _release(self) -> None:
        if not self._loss:
            with suppress(LostProcessError):
                self._group.share(None)
        self._program.close()


class LeadingAsynchronousProgram(LeadingProgram):
    """The same of a program that takes the argmax itself."""

    _program: AsynchronousProgram

    @property
    def peak_memory_bytes(self) -> int:
        """Peak bytes of this process (`AsynchronousProgram.peak_memory_bytes`)."""
        return self._program.peak_memory_bytes

    def submit(self, plan: StepPlan, inputs: Inputs = NO_INPUTS, *, after: boundary.Step | None = None) -> _Step:
        """Begin a step. after: the step that was submitted last, which alone other processes still know."""
        if not isinstance(after, _Step | None):
            raise InputError(f"after is a {type(after).__name__}: give a step that this program has begun")
        step: _Step = self._everywhere("submit", plan, dict(inputs), None if after is None else after.number)
        return step
