"""StagedProgram: stages that together are the Program of a whole graph."""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import LaneState
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.cache import StepPlan
from mistral_portable.errors import CacheError, ClosedError
from mistral_portable.forks import make_locks
from mistral_portable.staging.part import Facts
from mistral_portable.staging.stage import Handle, Stage

__all__ = ["StagedProgram"]


@dataclass(frozen=True)
class _Begun:
    """A step that goes through the stages. last: what the last one returns."""

    last: Handle

    def outputs(self) -> Mapping[str, NDArray[np.float32]]:
        found: Mapping[str, NDArray[np.float32]] = self.last.result()
        return found


class StagedProgram:
    """A PipelinedProgram: a step goes from stage to stage, and behind it the next steps.

    Each stage gets the plan and what the stage before returns; calls reach all stages in the same order. A step that
    fails in one stage fails in those behind it, which then have not taken part.
    """

    def __init__(
        self, stages: Sequence[Stage], progress: Callable[[str, int, int], None] | None = None, *, depth: int
    ) -> None:
        """Start all stages together.

        depth: steps that are under way together: as many as stages, where these work at the same time.

        Warnings that came in stages are issued here, each once. Raises the errors of `Part.start`; no stage is left
        then.
        """
        self._stages = stages
        self._closed = False
        make_locks(self, StagedProgram._make_locks)
        try:
            starting = [stage.submit("start") for stage in stages]
            self._facts = list[Facts]()
            for index, handle in enumerate(starting):
                if progress is not None:
                    progress(f"stage {index + 1} of {len(stages)}", index, len(stages))
                self._facts.append(handle.result())
        except BaseException:
            self.close()
            raise
        for notice in dict.fromkeys(notice for facts in self._facts for notice in facts.notices):
            warnings.warn(notice, stacklevel=2)
        self.depth = depth
        self.precision = self._facts[0].precision
        self.batch_invariant = all(facts.batch_invariant for facts in self._facts)

    @property
    def cache_bytes(self) -> int:
        return sum(cache for cache, _ in self._memory())

    @property
    def scratch_bytes(self) -> int:
        return sum(scratch for _, scratch in self._memory())

    def slot_bytes(self, group: int) -> int:
        return sum(facts.slot_bytes.get(group, 0) for facts in self._facts)

    def begin(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> _Begun:
        wanted = {name for facts in self._facts for name in facts.inputs}
        unknown = inputs.keys() - wanted  # the first stage refuses them
        before: Any = {}
        with self._in_turn():
            for index, (stage, facts) in enumerate(zip(self._stages, self._facts, strict=True)):
                own = {
                    name: array
                    for name, array in inputs.items()
                    if name in facts.inputs or (index == 0 and name in unknown)
                }
                before = stage.submit("step", plan, own, before)
        return _Begun(before)

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> Mapping[str, NDArray[np.float32]]:
        return self.begin(plan, inputs).outputs()

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        with self._in_turn():
            found = [
                stage.submit("read_pages", group, list(pages), list(blank))
                for stage, facts in zip(self._stages, self._facts, strict=True)
                if group in facts.slot_bytes
            ]
        return {name: array for handle in found for name, array in handle.result().items()}

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        """Names of arrays begin with KIND.LAYER, as `boundary.shared.check_pages` has them: so each goes to its stage.

        Where a later stage has no memory, earlier ones have written: the caller does not go on with such pages.
        """
        left = dict(state)
        parts = [
            (stage, {name: left.pop(name) for name in list(left) if _layer(name) in facts.layers})
            for stage, facts in zip(self._stages, self._facts, strict=True)
            if group in facts.slot_bytes
        ]
        if left:
            raise CacheError(f"the saved lane holds {', '.join(sorted(left))}: not the layers of this model")
        with self._in_turn():
            written = [stage.submit("write_pages", group, list(pages), part) for stage, part in parts]
        for handle in written:
            handle.result()

    def close(self) -> None:
        with self._turn:
            self._closed = True
            for stage in self._stages:  # a second call ends what Ctrl-C has left of the first one
                stage.close()

    def _memory(self) -> list[tuple[int, int]]:
        with self._in_turn():
            asked = [stage.submit("memory") for stage in self._stages]
        return [handle.result() for handle in asked]

    def _make_locks(self) -> None:
        self._turn = threading.Lock()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Let calls reach all stages in the same order. Raises ClosedError after `close`."""
        with self._turn:
            if self._closed:
                raise ClosedError("the program is closed: prepare it again")
            yield


def _layer(name: str) -> int | None:
    """The layer of an array of pages: "keys.3" -> 3; None for other names."""
    parts = name.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdecimal() else None
