"""Core: a program and the manager of its cache. Whoever steps a program does it through here."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import (
    DrawingProgram,
    DrawnStep,
    Draws,
    GreedyProgram,
    PipelinedProgram,
    Program,
    SavedLane,
    Step,
    load_lane,
    save_lane,
)
from mistral_portable.boundary.program import Inputs
from mistral_portable.cache import CacheManager, Chunk, StepPlan
from mistral_portable.errors import ClosedError, InputError
from mistral_portable.graph import Shape
from mistral_portable.graph.adapters import ADAPTERS
from mistral_portable.graph.passes import EMBEDDED_ROWS, INPUTS_EMBEDS

__all__ = ["Core"]

T = TypeVar("T")


class Core:
    """Runs steps for any number of threads, one at a time; a step that fails leaves every sequence as it was.

    Several programs of a model have a core each and may share a manager: their steps take turns, and a lane's keys and
    values are in one of them (`adopt`).
    """

    def __init__(self, program: Program, manager: CacheManager, *, given: Mapping[str, Shape] | None = None) -> None:
        """given: the inputs that the program's graph has beside those of plans (`Graph.given`)."""
        self.program = program
        # To ask what a protocol asks takes 10 us; each is asked once, and not for every step.
        self._pipelined = program if isinstance(program, PipelinedProgram) else None
        self._greedy = program if isinstance(program, GreedyProgram) else None
        self._drawing = program if isinstance(program, DrawingProgram) else None
        self.manager = manager
        self._given = given or {}
        self._closed = False

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
            # Not under `turn`: the garbage collector may run this in the thread that is in the middle of a step.
            self.manager.close(lane)

    def run(self, chunks: Sequence[Chunk]) -> tuple[StepPlan, Mapping[str, NDArray[np.float32]]]:
        """Run one step: its plan, and every output of the graph by name, as `Program.step` returns them.

        Raises ClosedError, InputError for `embeds` or `adapters` where the graph takes none, or the errors of
        `CacheManager.plan` and `Program.step`.
        """
        return self._run(chunks, lambda plan, inputs: self.program.step(plan, inputs))

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Run one step: logits float32 [R, vocab_size] of the rows that the chunks request. Errors: those of `run`."""
        logits = self.run(chunks)[1]["logits"]
        return logits.astype(np.float32, copy=False)  # float64 programs return float64

    @property
    def depth(self) -> int:
        """Steps that the program works on at a time; more than 1 where it has stages."""
        return 1 if self._pipelined is None else self._pipelined.depth

    def begin(self, chunks: Sequence[Chunk]) -> Callable[[], Mapping[str, NDArray[np.float32]]]:
        """Begin one step; return a function that waits for it and returns the outputs of `run`, each time it is called.

        Steps that have begun together are of different lanes. A program that has no stages runs the step now. Errors
        are those of `run`, now or when the outputs are asked for.
        """
        program = self._pipelined
        if program is None:
            made = self.run(chunks)[1]
            return lambda: made
        plan, step = self._run(chunks, program.begin)

        def outputs() -> Mapping[str, NDArray[np.float32]]:
            try:
                return step.outputs()
            except Exception:  # Ctrl-C is none of the step's errors: it goes on
                self.manager.undo(plan)
                raise

        return outputs

    def submit(self, chunks: Sequence[Chunk], after: Step | None = None) -> Step:
        """Begin one step of a GreedyProgram; see there. Raises the errors of `run`, and InputError for a program that
        leaves the argmax to the sampler."""
        program = self._greedy
        if program is None:
            raise InputError("this program leaves the argmax to the sampler: use step")
        return self._run(chunks, lambda plan, inputs: program.submit(plan, inputs, after=after))[1]

    def draw(self, chunks: Sequence[Chunk], draws: Draws, after: Step | None = None) -> DrawnStep:
        """Begin one step of a DrawingProgram; see there. Raises the errors of `run`, and InputError for a program that
        leaves draws to the sampler."""
        program = self._drawing
        if program is None:
            raise InputError("this program leaves draws to the sampler: use step")
        return self._run(chunks, lambda plan, inputs: program.draw(plan, draws, inputs, after=after))[1]

    def adopt(self, lane: int, source: "Core") -> None:
        """Copy the keys and values of a lane from another core of the same manager, whose program holds them.

        Raises ClosedError, CacheError if the lane is not open, CapacityError without memory for its pages.
        """
        with self.manager.turn:
            self._require_open()
            for group, pages in enumerate(self.manager.pages(lane)):
                self.program.write_pages(group, pages, source.program.read_pages(group, pages))

    def save(self, lane: int) -> SavedLane:
        """Copy the sequence in `lane`: its integers and the arrays that its next token needs. No step comes between.

        Raises ClosedError, or CacheError if the lane is not open.
        """
        with self.manager.turn:
            self._require_open()
            return save_lane(self.program, self.manager, lane)

    def load(self, saved: SavedLane) -> int:
        """Open a lane that goes on where a saved sequence was; the caller closes it. No step comes between.

        Raises ClosedError, or the errors of `boundary.load_lane`.
        """
        with self.manager.turn:
            self._require_open()
            return load_lane(self.program, self.manager, saved)

    def save_known(self, tokens: Sequence[int], salt: Hashable = "") -> SavedLane:
        """Copy the longest known beginning of these tokens; `integers["length"]` of the copy is their number.

        salt: as `CacheManager.resume` takes it.

        Raises ClosedError, BusyError if all lanes are taken, CapacityError if there is no room beside the other lanes.
        """
        lane, _ = self.manager.resume(tokens, salt=salt)
        try:
            return self.save(lane)
        finally:
            self._keep_and_close(lane, tokens, salt)  # a lane in one piece is taken over by whoever resumes it

    def make_known(self, saved: SavedLane, tokens: Sequence[int], salt: Hashable = "") -> int:
        """Make a saved sequence of these tokens known; return the number of them that the cache has room to keep.

        Raises the errors of `load`.
        """
        lane = self.load(saved)
        self._keep_and_close(lane, tokens, salt)
        lane, known = self.manager.resume(tokens, salt=salt)
        self._keep_and_close(lane, tokens, salt)
        return known

    def _keep_and_close(self, lane: int, tokens: Sequence[int], salt: Hashable) -> None:
        try:
            self.manager.keep(lane, tokens, salt=salt)
        finally:
            self.manager.close(lane)

    def close(self) -> None:
        """Release the executor's threads and memory; every later step raises ClosedError."""
        with self.manager.turn:
            self._closed = True
            self.program.close()

    def _run(self, chunks: Sequence[Chunk], step: Callable[[StepPlan, Inputs], T]) -> tuple[StepPlan, T]:
        inputs = self._inputs(chunks)
        with self.manager.turn:
            self._require_open()
            plan = self.manager.plan(chunks)
            try:
                return plan, step(plan, inputs)
            except BaseException:  # no memory for more keys, say: what this step has written does not count
                self.manager.undo(plan)
                raise

    def _inputs(self, chunks: Sequence[Chunk]) -> Inputs:
        """Make the arrays that the graph declares beside the plan's."""
        inputs: dict[str, NDArray[Any]] = {}
        if INPUTS_EMBEDS in self._given:
            inputs |= _embedded(chunks, int(self._given[INPUTS_EMBEDS][1]))
        elif any(chunk.embeds is not None for chunk in chunks):
            raise InputError("this program takes token ids only: leave out embeds")
        if ADAPTERS in self._given:
            inputs[ADAPTERS] = _adapted(chunks, int(self._given[ADAPTERS][1]))
        elif any(chunk.adapters for chunk in chunks):
            raise InputError("this program has no adapters: leave them out")
        return inputs

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the model is closed: load it again")


def _embedded(chunks: Sequence[Chunk], hidden_size: int) -> dict[str, NDArray[Any]]:
    """Rows in place of embeddings, [0, hidden_size] and [0] for ids alone."""
    rows = [np.zeros((0, hidden_size), np.float32), *(chunk.embeds for chunk in chunks if chunk.embeds is not None)]
    places, start = [np.zeros(0, np.int32)], 0
    for chunk in chunks:
        if chunk.embeds is not None:
            places.append(np.arange(start, start + len(chunk.embeds), dtype=np.int32))
        start += len(chunk.tokens)
    return {INPUTS_EMBEDS: np.concatenate(rows), EMBEDDED_ROWS: np.concatenate(places)}


def _adapted(chunks: Sequence[Chunk], count: int) -> NDArray[np.float32]:
    """Each token's weights of the adapters, [T, count]."""
    weights, start = np.zeros((sum(len(chunk.tokens) for chunk in chunks), count), np.float32), 0
    for chunk in chunks:
        if chunk.adapters:
            weights[start : start + len(chunk.tokens)] = chunk.adapters
        start += len(chunk.tokens)
    return weights
