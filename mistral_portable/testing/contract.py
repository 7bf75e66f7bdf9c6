"""The contract of a Program beyond its numbers: it can be closed, takes calls from threads, and shares no arrays.

Each function takes a program through a scenario, like `scenario.run`, and returns the outputs, which are then judged.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary.program import NO_INPUTS, Inputs, LaneState, Precision, Program
from mistral_portable.cache import CacheManager, CacheSpec, Chunk, StepPlan
from mistral_portable.cache.plan import Reads
from mistral_portable.errors import ClosedError
from mistral_portable.graph import Graph
from mistral_portable.testing.scenario import (
    Outputs,
    Scenario,
    Stuck,
    WrongOutput,
    given_inputs,
    run,
)

__all__ = ["run_guarded", "run_in_threads", "run_then_close"]

_PATIENCE = 300.0  # seconds until a thread counts as stuck; compilers may take minutes
_FAR = 40  # a page that no scenario of short texts reaches: what is written there makes the pool grow


def run_then_close(program: Program, graph: Graph, spec: CacheSpec, scenario: Scenario) -> dict[int, Outputs]:
    """Run, move pages, then close the program twice.

    Raises WrongOutput unless pages are read as they were written, but for what is to be blank, and every call but
    `close` raises ClosedError then.
    """
    outputs = run(program, graph, spec, scenario)
    for group in range(len(spec.groups)):
        _require_moved(program, group)
        _require_sized(program, spec, group)
        _require_blank(program, group)
    state = program.read_pages(0, [0])
    manager = CacheManager(spec)
    plan = manager.plan([Chunk(manager.open(), (0,))])
    program.close()
    program.close()
    calls: dict[str, Callable[[], object]] = {
        "step": lambda: program.step(plan, given_inputs(plan, graph, embeds=False)),
        "read_pages": lambda: program.read_pages(0, [0]),
        "write_pages": lambda: program.write_pages(0, [0], state),
    }
    for name, call in calls.items():
        try:
            call()
        except ClosedError:
            continue
        except Exception as error:
            raise WrongOutput(f"after close, {name} raises {type(error).__name__}, not ClosedError: {error}") from error
        raise WrongOutput(f"after close, {name} raises no ClosedError")
    return outputs


def _require_moved(program: Program, group: int) -> None:
    """Write page 0 and an empty one beyond the pool, in descending order, and read them in ascending order.

    Raises WrongOutput unless they are found there, and whatever the arrays that were read before have become.
    """
    first = program.read_pages(group, [0])
    empty = {name: np.zeros_like(array) for name, array in first.items()}
    both = {name: np.concatenate([array, empty[name]]) for name, array in first.items()}
    program.write_pages(group, [_FAR + 1, _FAR], both)
    for array in both.values():
        array.fill(1)
    for _ in range(2):
        found = program.read_pages(group, [_FAR, _FAR + 1])
        for name, array in found.items():
            expected = np.concatenate([empty[name], first[name]])
            if array.shape != expected.shape or array.tobytes() != expected.tobytes():
                raise WrongOutput(f"group {group}: {name} is not read as it was written")
            array.fill(1)


def _require_sized(program: Program, spec: CacheSpec, group: int) -> None:
    """Raise WrongOutput unless page 0 has the bytes that `slot_bytes` says; a ring may have fewer slots."""
    own, slot = spec.groups[group], program.slot_bytes(group)
    found = sum(array.nbytes for array in program.read_pages(group, [0]).values())
    if found % slot or not (0 < found <= own.page_size * slot if own.ring else found == own.page_size * slot):
        raise WrongOutput(f"group {group}: page 0 has {found} bytes, and {own.page_size} slots of {slot} bytes")


def _require_blank(program: Program, group: int) -> None:
    """Fill two pages and read them with blank slots. Lanes that are saved and go on show that these are the right ones.

    Raises WrongOutput unless the last page alone has zeros, as many as the slots have bytes, each slot in other places.
    """
    state = {name: np.ones(array.shape, array.dtype) for name, array in program.read_pages(group, [0, 0]).items()}
    for array in state.values():
        array.view(np.uint8).fill(1)
    program.write_pages(group, [_FAR, _FAR + 1], state)
    slot = program.slot_bytes(group)
    slots = sum(array[:1].nbytes for array in state.values()) // slot
    zeros = np.zeros(sum(array.nbytes for array in state.values()) // 2, np.intp)
    for blank in ([], [0], list(range(1, slots))):
        found = program.read_pages(group, [_FAR, _FAR + 1], blank)
        first, last = (np.concatenate([a[page].view(np.uint8).ravel() for a in found.values()]) for page in (0, 1))
        zeros += last == 0
        if not first.all() or np.count_nonzero(last == 0) != len(blank) * slot:
            raise WrongOutput(f"group {group}: read_pages with the slots {blank} blank: not these alone are zeros")
    if np.any(zeros != 1):
        raise WrongOutput(f"group {group}: read_pages has zeros in other slots than those that are to be blank")


def run_in_threads(program: Program, graph: Graph, spec: CacheSpec, scenario: Scenario) -> dict[int, Outputs]:
    """Run each sequence in a thread of its own, all at once, each in its lane of the one program.

    Raises what a thread raised, and Stuck if one has not ended after five minutes.
    """
    manager = CacheManager(spec)
    start = threading.Barrier(len(scenario.texts))
    outputs: dict[int, Outputs] = {}
    errors: list[Exception] = []

    def run_one(sequence: int) -> None:
        try:
            start.wait()
            outputs[sequence] = run(program, graph, spec, scenario.only(sequence), manager)[sequence]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run_one, args=(sequence,), daemon=True) for sequence in scenario.texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENCE)
        if thread.is_alive():
            raise Stuck(f"steps in {len(threads)} threads have not ended after {_PATIENCE:.0f} s")
    if errors:
        raise errors[0]
    return outputs


def run_guarded(program: Program, graph: Graph, spec: CacheSpec, scenario: Scenario) -> dict[int, Outputs]:
    """Run, and after each step write into the arrays that were given to it and into every other step's outputs.

    Raises WrongOutput if a later step changes outputs that were left alone.
    """
    guard = _Guard(program)
    outputs = run(guard, graph, spec, scenario)
    guard.require_unchanged()
    return outputs


class _Guard:
    """A program that gives `inner` copies of the arguments, and the caller copies of the outputs."""

    def __init__(self, inner: Program) -> None:
        self._inner = inner
        self._left_alone: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self._steps = 0

    @property
    def precision(self) -> Precision:
        return self._inner.precision

    @property
    def batch_invariant(self) -> bool:
        return self._inner.batch_invariant

    def slot_bytes(self, group: int) -> int:
        return self._inner.slot_bytes(group)

    @property
    def cache_bytes(self) -> int:
        return self._inner.cache_bytes

    @property
    def scratch_bytes(self) -> int:
        return self._inner.scratch_bytes

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, NDArray[Any]]:
        own_plan, plan_arrays = _copied(plan)
        own_inputs = {name: array.copy() for name, array in inputs.items()}
        outputs = self._inner.step(own_plan, own_inputs)
        self.require_unchanged()
        for array in (*plan_arrays, *own_inputs.values()):
            array.fill(0)
        returned = {name: array.copy() for name, array in outputs.items()}
        for name, array in outputs.items():
            if not array.flags.writeable:
                returned[name].flags.writeable = False  # `run` reports it
            elif self._steps % 2:
                array.fill(np.nan)
            else:
                self._left_alone.append((array, array.copy()))
        self._steps += 1
        return returned

    def require_unchanged(self) -> None:
        """Raise WrongOutput if outputs that were left alone are no longer as they were returned."""
        for array, returned in self._left_alone:
            if not np.array_equal(array, returned, equal_nan=True):
                raise WrongOutput("a later step changed arrays that an earlier one returned")

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        return self._inner.read_pages(group, pages, blank)

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        self._inner.write_pages(group, pages, state)

    def close(self) -> None:
        self._inner.close()


def _copied(plan: StepPlan) -> tuple[StepPlan, list[NDArray[Any]]]:
    """A plan of copies, and these arrays."""
    arrays: list[NDArray[Any]] = []

    def copied(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays.append(value.copy())
            return arrays[-1]
        return value

    groups = tuple(Reads(*map(copied, reads)) for reads in plan.groups)
    return StepPlan(*map(copied, plan))._replace(groups=groups), arrays
