"""JAXProgram: a compiled step with its weights and its cache."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import LaneState, Precision
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.boundary.shared import (
    attention_weights_by_position,
    check_inputs,
    check_lane_state,
    notice_unpacked,
)
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import CapacityError, ClosedError
from mistral_portable.graph import Graph, infer_shapes
from mistral_portable.weights import Tensor
from mistral_portable_jax.failures import translated
from mistral_portable_jax.inputs import few, step_inputs
from mistral_portable_jax.step import PROCESS, Arrays, StepInputs, run
from mistral_portable_jax.weights import read

__all__ = ["JAXProgram"]

Result = TypeVar("Result")


class JAXProgram:
    """A Program whose cache is donated to each step, which writes to it in place and returns it.

    Calls run in one thread of the program's own, one after the other. Ctrl-C, which Python raises in the main thread,
    can therefore not come between the cache that a step takes and the one that it returns.

    A step that fails has not taken place. If it fails before XLA has taken the cache, nothing else changes. If it
    fails later, the keys and values of all lanes are lost: the program starts an empty cache, sequences that begin
    anew work, and a step or a copy of a lost lane raises CapacityError until the lane begins at position 0 again.
    """

    batch_invariant = False  # XLA's order of a sum depends on the padded size of the step and of the cache

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        spec: CacheSpec,
        dtype: str,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        PROCESS.require()
        self.precision = Precision(dtype)
        self.traces = 0
        """Number of steps compiled so far: one for each combination of padded step size and cache size."""
        self._graph, self._spec = graph, spec
        self._nodes = {node.name: node for node in graph.nodes}
        self._shapes = infer_shapes(graph)
        self._groups = {layer: index for index, group in enumerate(spec.groups) for layer in group.layers}
        self._worker = ThreadPoolExecutor(1, "mistral_portable_jax")
        self._step = jax.jit(self._traced, donate_argnums=1)
        self._lost: set[int] = set()
        notice_unpacked(graph, weights, dtype, "this backend computes with floats only")
        self._weights: Arrays = self._in_turn(partial(read, graph, weights, dtype, progress))
        self._cache: Arrays = self._in_turn(self._empty)

    @property
    def cache_bytes(self) -> int:
        return sum(array.nbytes for array in self._cache.values())

    @property
    def scratch_bytes(self) -> int:
        return 0  # XLA owns it

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, NDArray[Any]]:
        check_inputs(self._graph, plan, inputs)
        return self._in_turn(partial(self._run, plan, inputs))

    def copy_lane(self, source: int, target: int) -> None:
        self._in_turn(lambda: self._load(target, self._save(source)))

    def save_lane(self, lane: int) -> LaneState:
        """The lane's arrays by name; bfloat16, which NumPy does not have, as uint16, its bits."""
        return self._in_turn(partial(self._save, lane))

    def load_lane(self, lane: int, state: LaneState) -> None:
        self._in_turn(partial(self._load, lane, state))

    def close(self) -> None:
        if PROCESS.forked:  # the parent's arrays, and a thread that is not here
            return
        self._worker.shutdown()
        self._weights, self._cache = {}, {}

    def _in_turn(self, call: Callable[[], Result]) -> Result:
        PROCESS.require()

        def scoped() -> Result:
            with jax.enable_x64(True) if self.precision.dtype == "float64" else nullcontext():
                return call()

        try:
            future = self._worker.submit(scoped)
        except RuntimeError as error:  # it takes no more calls
            raise ClosedError("the program is closed: prepare it again") from error
        return future.result()

    def _traced(self, weights: Arrays, cache: Arrays, inputs: StepInputs) -> tuple[Arrays, Arrays]:
        self.traces += 1
        return run(self._graph, self._groups, self.precision.dtype, weights, cache, inputs)

    def _run(self, plan: StepPlan, inputs: Inputs) -> dict[str, NDArray[Any]]:
        begun = plan.lanes[plan.positions[plan.query_starts[:-1]] > 0]
        for lane in begun.tolist():
            self._require_held(lane)
        self._grow(max(plan.lanes.tolist()) + 1, [reads.capacity for reads in plan.groups])
        arrays = step_inputs(plan, inputs, self._spec, self._graph, self.precision.dtype)
        try:
            # A device may fail after the call has returned, so the arrays are waited for here.
            outputs, cache = jax.block_until_ready(self._step(self._weights, self._cache, arrays))
        except jax.errors.JaxRuntimeError as error:
            subject = f"a step of {len(plan.tokens)} tokens"
            if any(array.is_deleted() for array in self._cache.values()):
                self._lost |= set(range(self._lanes()))
                self._cache = self._empty()
                subject += " (all sequences of this program have to start again)"
            raise translated(error, subject, "use shorter chunks, fewer sequences or --dtype bfloat16") from error
        self._cache = cache
        self._lost -= set(plan.lanes.tolist())
        return {name: self._output(name, array, plan) for name, array in outputs.items()}

    def _output(self, name: str, array: jax.Array, plan: StepPlan) -> NDArray[Any]:
        value = self._graph.outputs[name]
        shape, wide = self._shapes[value], np.float64 if self.precision.dtype == "float64" else np.float32
        count = len(plan.logit_rows) if shape[0] == "R" else len(plan.tokens)
        out = np.asarray(array)[:count].astype(wide)
        if shape[-1] != "K":
            return out
        spans = plan.spans
        return attention_weights_by_position(
            self._nodes[value], plan, self._spec, lambda s, slots: out[spans[s]][:, :, slots], wide
        )

    def _empty(self) -> Arrays:
        """A cache of no lanes."""
        shape = (0, 0, self._spec.num_key_value_heads, self._spec.head_dim)
        empty = np.zeros(shape, jnp.dtype(self.precision.dtype))
        return {f"{kind}.{layer}": jnp.asarray(empty) for layer in self._groups for kind in ("keys", "values")}

    def _lanes(self) -> int:
        """Lanes that every layer has."""
        return min(len(array) for array in self._cache.values())

    def _slots(self, group: int) -> int:
        """Slots of a lane that every layer of a group has. Growth that failed halfway leaves other layers more."""
        return min(self._cache[f"keys.{layer}"].shape[1] for layer in self._spec.groups[group].layers)

    def _require_held(self, lane: int) -> None:
        if lane in self._lost:
            raise CapacityError(
                f"lane {lane}: its keys and values were lost when a step failed: "
                "run the sequence again from its first token, in shorter chunks or beside fewer sequences"
            )

    def _grow(self, lanes: int, capacities: list[int]) -> None:
        """Make room for `lanes` lanes of so many slots in each group. Raises CapacityError if memory is short."""
        lanes = min(few(lanes), self._spec.max_lanes)
        # At least 64 slots: each size of the cache is compiled.
        capacities = [
            max(capacity, min(64, group.slots)) for capacity, group in zip(capacities, self._spec.groups, strict=True)
        ]
        try:
            for layer, group in self._groups.items():
                grown: Arrays = {}
                for name in (f"keys.{layer}", f"values.{layer}"):
                    array = self._cache[name]
                    more = max(0, lanes - len(array)), max(0, capacities[group] - array.shape[1])
                    if any(more):
                        grown[name] = jnp.pad(array, [(0, more[0]), (0, more[1]), (0, 0), (0, 0)])
                # Keys and values together, so that their shapes agree if the next layer does not fit.
                self._cache |= jax.block_until_ready(grown)
        except jax.errors.JaxRuntimeError as error:
            subject = f"the cache of {lanes} sequences of {max(capacities)} tokens"
            raise translated(error, subject, "use fewer sequences or a shorter text") from error

    def _save(self, lane: int) -> LaneState:
        self._require_held(lane)
        if lane >= self._lanes():
            return {}
        return {
            name: _bits(array[lane, : self._slots(self._groups[int(name.partition(".")[2])])])
            for name, array in self._cache.items()
        }

    def _load(self, lane: int, state: LaneState) -> None:
        row = (self._spec.num_key_value_heads, self._spec.head_dim)
        kind = "uint16" if self.precision.dtype == "bfloat16" else self.precision.dtype
        saved_slots = check_lane_state(state, self._spec, {"keys": (row, kind), "values": (row, kind)})
        slots = [min(count, group.slots) for count, group in zip(saved_slots, self._spec.groups, strict=True)]
        self._grow(lane + 1, slots)
        try:
            for name, saved in state.items():
                array, count = self._cache[name], slots[self._groups[int(name.partition(".")[2])]]
                filled = np.zeros(array.shape[1:], array.dtype)
                filled[:count] = saved[:count].view(array.dtype)
                self._cache[name] = jax.block_until_ready(array.at[lane].set(filled))
        except jax.errors.JaxRuntimeError as error:
            raise translated(error, f"the saved lane of {max(slots)} tokens", "use fewer sequences") from error
        self._lost.discard(lane)


def _bits(array: jax.Array) -> NDArray[Any]:
    """A NumPy copy; bfloat16 as uint16."""
    found = np.array(array)
    return found.view(np.uint16) if array.dtype == jnp.bfloat16 else found
