"""JAXProgram: a compiled step, with its weights and its cache."""

import warnings
from collections import Counter
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
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import BackendError, CacheError
from mistral_portable.graph import Graph, infer_shapes
from mistral_portable.weights import BlockTensor, Tensor
from mistral_portable_jax.inputs import few, step_inputs
from mistral_portable_jax.step import Arrays, Inputs, run
from mistral_portable_jax.weights import read

__all__ = ["JAXProgram"]

Result = TypeVar("Result")


class JAXProgram:
    """Steps are safe from several threads: one thread takes them, in turn.

    That a step is not taken by the caller's thread has another reason: it consumes the cache and makes a new one, and
    Ctrl-C, which Python raises in the main thread, must not come between the two.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        spec: CacheSpec,
        dtype: str,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.precision = Precision(dtype)
        self.traces = 0
        """How many steps were compiled: one for each size of step and cache that there was."""
        self._graph, self._spec = graph, spec
        self._shapes = infer_shapes(graph)
        self._groups = {layer: index for index, group in enumerate(spec.groups) for layer in group.layers}
        self._worker = ThreadPoolExecutor(1, "mistral_portable_jax")
        self._step = jax.jit(self._traced, donate_argnums=1)
        _notice_unpacked(graph, weights, dtype)
        self._weights: Arrays = self._in_turn(partial(read, graph, weights, dtype, progress))
        empty = np.zeros((0, 0, spec.num_key_value_heads, spec.head_dim), jnp.dtype(dtype))
        names = [f"{kind}.{layer}" for layer in self._groups for kind in ("keys", "values")]
        self._cache: Arrays = self._in_turn(lambda: {name: jnp.asarray(empty) for name in names})

    @property
    def cache_bytes(self) -> int:
        return sum(array.nbytes for array in self._cache.values())

    def step(self, plan: StepPlan, inputs_embeds: NDArray[np.float32] | None = None) -> dict[str, NDArray[Any]]:
        return self._in_turn(partial(self._run, plan, inputs_embeds))

    def copy_lane(self, source: int, target: int) -> None:
        self._in_turn(partial(self._load, target, self.save_lane(source)))

    def save_lane(self, lane: int) -> LaneState:
        """By name; bfloat16, which NumPy does not have, as its bits."""
        return self._in_turn(
            lambda: {name: _bits(array[lane]) for name, array in self._cache.items() if lane < len(array)}
        )

    def load_lane(self, lane: int, state: LaneState) -> None:
        self._in_turn(partial(self._load, lane, state))

    def close(self) -> None:
        self._worker.shutdown()
        self._weights, self._cache = {}, {}

    def _in_turn(self, call: Callable[[], Result]) -> Result:
        def scoped() -> Result:
            with jax.enable_x64(True) if self.precision.dtype == "float64" else nullcontext():
                return call()

        return self._worker.submit(scoped).result()

    def _traced(self, weights: Arrays, cache: Arrays, inputs: Inputs) -> tuple[Arrays, Arrays]:
        self.traces += 1
        return run(self._graph, self._groups, self.precision.dtype, weights, cache, inputs)

    def _run(self, plan: StepPlan, inputs_embeds: NDArray[np.float32] | None) -> dict[str, NDArray[Any]]:
        self._grow(max(plan.lanes.tolist()) + 1, [reads.capacity for reads in plan.groups])
        inputs = step_inputs(plan, inputs_embeds, self._spec, self._graph.rotations, self.precision.dtype)
        try:
            outputs, self._cache = self._step(self._weights, self._cache, inputs)
        except jax.errors.JaxRuntimeError as error:  # the cache is gone: it was the step's to write to
            raise BackendError(
                f"a step of {len(plan.tokens)} tokens failed, and the program cannot go on: prepare it again, for "
                f"shorter chunks or fewer sequences ({str(error).splitlines()[0]})"
            ) from error
        return {name: self._output(name, array, plan) for name, array in outputs.items()}

    def _output(self, name: str, array: jax.Array, plan: StepPlan) -> NDArray[Any]:
        value = self._graph.outputs[name]
        count = len(plan.logit_rows) if self._shapes[value][0] == "R" else len(plan.tokens)
        out = np.asarray(array)[:count].astype(np.float64 if self.precision.dtype == "float64" else np.float32)
        return self._by_position(value, out, plan) if self._shapes[value][-1] == "K" else out

    def _by_position(self, value: str, weights: NDArray[Any], plan: StepPlan) -> NDArray[Any]:
        """Attention weights [T, heads, slots] -> [T, heads, K]: in the order of positions, from the first one read."""
        layer: Any = next(node.attributes["layer"] for node in self._graph.nodes if node.name == value)
        group = self._groups[layer]
        first, ends = plan.groups[group].first, plan.positions[plan.query_starts[1:] - 1] + 1
        out = np.zeros((*weights.shape[:2], int(np.max(ends - first))), weights.dtype)
        for s in range(len(plan.lanes)):
            slots = np.arange(first[s], ends[s]) % self._spec.groups[group].slots
            tokens = slice(plan.query_starts[s], plan.query_starts[s + 1])
            out[tokens, :, : len(slots)] = weights[tokens][:, :, slots]
        return out

    def _grow(self, lanes: int, capacities: list[int]) -> None:
        """Make room. Raises CacheError if there is no memory for it."""
        lanes = min(few(lanes), self._spec.max_lanes)
        try:
            for layer, group in self._groups.items():
                for name in (f"keys.{layer}", f"values.{layer}"):
                    array = self._cache[name]
                    more = max(0, lanes - len(array)), max(0, capacities[group] - array.shape[1])
                    if any(more):
                        self._cache[name] = jnp.pad(array, [(0, more[0]), (0, more[1]), (0, 0), (0, 0)])
        except jax.errors.JaxRuntimeError as error:
            raise CacheError(
                f"the cache of {lanes} sequences of {max(capacities)} tokens does not fit: use fewer sequences or a "
                f"shorter text ({str(error).splitlines()[0]})"
            ) from error

    def _load(self, lane: int, state: LaneState) -> None:
        if state and set(state) != set(self._cache):  # a lane that was saved before its first step is empty
            raise CacheError(f"the saved lane holds {', '.join(sorted(state))}: not the layers of this model")
        slots = [0] * len(self._spec.groups)
        for name, saved in state.items():
            group = self._groups[int(name.partition(".")[2])]
            like = _bits(self._cache[name][:0])
            slots[group] = slots[group] or len(saved)
            if saved.dtype != like.dtype or saved.shape != (slots[group], *like.shape[2:]):
                raise CacheError(f"the saved lane does not fit this model: {name} is {saved.dtype} {saved.shape}")
        slots = [min(count, group.slots) for count, group in zip(slots, self._spec.groups, strict=True)]
        self._grow(lane + 1, slots)
        for name, saved in state.items():
            array, count = self._cache[name], slots[self._groups[int(name.partition(".")[2])]]
            row = np.zeros(array.shape[1:], array.dtype)
            row[:count] = saved[:count].view(array.dtype)
            self._cache[name] = array.at[lane].set(row)


def _bits(array: jax.Array) -> NDArray[Any]:
    found = np.array(array)
    return found.view(np.uint16) if array.dtype == jnp.bfloat16 else found


def _notice_unpacked(graph: Graph, weights: Mapping[str, Tensor], dtype: str) -> None:
    """Say what takes more memory than in the file."""
    parts = [weights[part] for parameter in graph.parameters.values() for part in parameter.parts]
    kinds = Counter(part.dtype for part in parts if isinstance(part, BlockTensor))
    if kinds:
        listed = ", ".join(f"{count} in {kind}" for kind, count in sorted(kinds.items()))
        warnings.warn(
            f"{sum(kinds.values())} matrices ({listed}) are unpacked to {dtype}, as this backend has no blocks: they "
            "take more memory than in the file",
            stacklevel=4,
        )
