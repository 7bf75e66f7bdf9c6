"""Core: a program, its cache manager and their lock. Whoever steps a program does it through here."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import GreedyProgram, GreedyStep, Program, SavedLane, load_lane, save_lane
from mistral_portable.cache import CacheManager, Chunk, StepPlan
from mistral_portable.errors import ClosedError, InputError
from mistral_portable.forks import make_locks

__all__ = ["Core"]

T = TypeVar("T")


class Core:
    """Runs steps for any number of threads, one at a time; a step that fails leaves every sequence as it was."""

    def __init__(self, program: Program, manager: CacheManager) -> None:
        self.program = program
        self.manager = manager
        make_locks(self, Core._make_locks)
        self._closed = False

    def _make_locks(self) -> None:
        self._turn = threading.Lock()

    @property
    def max_context(self) -> int:
        """Tokens that a sequence, prompt and answer together, may reach."""
        return self.manager.spec.max_context

    @contextmanager
    def lane(self) -> Iterator[int]:
        """A lane of the cache for the duration of a `with` block. Raises BusyError if all are taken."""
        lane = self.manager.open()
        try:
            yield lane
        finally:
            # Not under `_turn`: the garbage collector may run this in the thread that is in the middle of a step.
            self.manager.close(lane)

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run one step: logits float32 [R, vocab_size] of the rows that the chunks request.

        Raises ClosedError, or the errors of `CacheManager.plan` and `Program.step`.
        """
        logits = self._run(chunks, self.program.step)["logits"]
        return logits.astype(np.float32, copy=False)  # float64 programs return float64

    def begin_greedy(self, chunks: Sequence[Chunk], after: GreedyStep | None = None) -> GreedyStep:
        """Begin one step of a GreedyProgram; see there. Raises the errors of `step`, and InputError for a program that
        leaves the argmax to the sampler."""
        program = self.program
        if not isinstance(program, GreedyProgram):
            raise InputError("this program leaves the argmax to the sampler: use step")
        return self._run(chunks, lambda plan: program.begin_greedy(plan, after))

    def save(self, lane: int) -> SavedLane:
        """Copy the sequence in `lane`: its integers and the arrays that its next token needs. No step comes between.

        Raises ClosedError, or CacheError if the lane is not open.
        """
        with self._turn:
            self._require_open()
            return save_lane(self.program, self.manager, lane)

    def load(self, saved: SavedLane) -> int:
        """Open a lane that goes on where a saved sequence was; the caller closes it. No step comes between.

        Raises ClosedError, or the errors of `boundary.load_lane`.
        """
        with self._turn:
            self._require_open()
            return load_lane(self.program, self.manager, saved)

    def save_known(self, tokens: Sequence[int]) -> SavedLane:
        """Copy the longest known beginning of these tokens; `integers["length"]` of the copy is their number.

        Raises ClosedError, BusyError if all lanes are taken, CapacityError if there is no room beside the other lanes.
        """
        lane, _ = self.manager.resume(tokens)
        try:
            return self.save(lane)
        finally:
            self._keep_and_close(lane, tokens)  # a lane in one piece is taken over by whoever resumes it

    def make_known(self, saved: SavedLane, tokens: Sequence[int]) -> int:
        """Make a saved sequence of these tokens known; return the number of them that the cache has room to keep.

        Raises the errors of `load`.
        """
        lane = self.load(saved)
        self._keep_and_close(lane, tokens)
        lane, known = self.manager.resume(tokens)
        self._keep_and_close(lane, tokens)
        return known

    def _keep_and_close(self, lane: int, tokens: Sequence[int]) -> None:
        try:
            self.manager.keep(lane, tokens)
        finally:
            self.manager.close(lane)

    def close(self) -> None:
        """Release the executor's threads and memory; every later step raises ClosedError."""
        with self._turn:
            self._closed = True
            self.program.close()

    def _run(self, chunks: Sequence[Chunk], step: Callable[[StepPlan], T]) -> T:
        with self._turn:
            self._require_open()
            plan = self.manager.plan(chunks)
            try:
                return step(plan)
            except BaseException:  # no memory for more keys, say: what this step has written does not count
                self.manager.undo(plan)
                raise

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the model is closed: load it again")
