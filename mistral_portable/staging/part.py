"""Part: a stage's program, as it lives in the stage's process."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from mistral_portable.boundary import Backend, ExecutorOptions, LaneState, Precision, Program, prepare
from mistral_portable.boundary.program import Inputs
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.graph import Graph
from mistral_portable.graph.stages import cut, layers_of
from mistral_portable.weights import Tensor

__all__ = ["Facts", "Made", "Part", "make_part"]

Rows = Mapping[str, NDArray[Any]]
"""Arrays that stages pass on: the hidden states [T, H] for the next one, and outputs of the whole graph, by name."""


@dataclass(frozen=True)
class Made:
    """A stage's program.

    taken: the hidden states that it takes from the stage before, by name. inputs: those that the caller of a step
    gives it. layers: its own, as the whole model counts them. groups: the indices of their groups in the whole's cache.
    """

    program: Program
    taken: tuple[str, ...]
    inputs: tuple[str, ...]
    layers: tuple[int, ...]
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Facts:
    """Values of a stage that the whole needs: those of Made, and of its program.

    slot_bytes: by layer group of the whole. notices: warnings that came while it was made.
    """

    inputs: tuple[str, ...]
    layers: tuple[int, ...]
    precision: Precision
    batch_invariant: bool
    slot_bytes: Mapping[int, int]
    notices: tuple[str, ...]


def make_part(
    backend: Backend,
    graph: Graph,
    cuts: Sequence[int],
    stage: int,
    weights: Mapping[str, Tensor],
    cache: CacheSpec,
    options: ExecutorOptions,
) -> Made:
    """Cut a graph, and lower one of its stages.

    graph, weights, cache: those of the whole model; the stage takes what its graph names, and the groups of its layers.
    Raises GraphError for bad cuts (`graph.stages.cut`), and the errors of `boundary.prepare`.
    """
    own = cut(graph, cuts)[stage]
    layers = layers_of(own)
    layers_by_group = {
        index: tuple(layer for layer in group.layers if layer in layers) for index, group in enumerate(cache.groups)
    }
    groups = {index: replace(cache.groups[index], layers=some) for index, some in layers_by_group.items() if some}
    spec = replace(cache, groups=tuple(groups.values()))
    program = prepare(backend, own, {name: weights[name] for name in own.tensors}, spec, options)
    taken, inputs = own.given.keys() - graph.given.keys(), own.given.keys() & graph.given.keys()
    return Made(program, tuple(taken), tuple(inputs), layers, tuple(groups))


class Part:
    """A stage of a model: one object in each process. Its methods are called by name, one after another."""

    def __init__(self, make: Callable[[], Made]) -> None:
        """make: called by `start`; it must be picklable where the part is in another process."""
        self._make = make

    def start(self) -> Facts:
        """Make the program. Raises the errors of `boundary.prepare`, or of opening a checkpoint."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._made = self._make()
        program = self._made.program
        return Facts(
            self._made.inputs,
            self._made.layers,
            program.precision,
            program.batch_invariant,
            {group: program.slot_bytes(index) for index, group in enumerate(self._made.groups)},
            tuple(str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)),
        )

    def step(self, plan: StepPlan, inputs: Inputs, before: Rows) -> Rows:
        """Run the stage on a step of the whole model.

        before: the result of the stage before. What this stage does not take goes on to the next one, beside its own
        outputs: so the last stage returns all that the whole model does. Raises the errors of `Program.step`.
        """
        taken = {name: before[name] for name in self._made.taken}
        own = plan._replace(groups=tuple(plan.groups[group] for group in self._made.groups))
        return {
            **{name: rows for name, rows in before.items() if name not in taken},
            **self._made.program.step(own, {**inputs, **taken}),
        }

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int]) -> LaneState:
        """Copies of the pages' arrays of the stage's layers in a group of the whole (`Program.read_pages`)."""
        return self._made.program.read_pages(self._made.groups.index(group), pages, blank)

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        """Write them (`Program.write_pages`)."""
        self._made.program.write_pages(self._made.groups.index(group), pages, state)

    def memory(self) -> tuple[int, int]:
        """`Program.cache_bytes` and `Program.scratch_bytes`."""
        return self._made.program.cache_bytes, self._made.program.scratch_bytes

    def close(self) -> None:
        """Release the program's threads and memory."""
        self._made.program.close()
