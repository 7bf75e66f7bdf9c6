"""JAXProgram: a compiled step with its weights and its cache."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import LaneState, Precision
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.boundary.shared import attention_weights_by_position, check_inputs, notice_unpacked
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import ClosedError
from mistral_portable.graph import Graph, infer_shapes
from mistral_portable.weights import Tensor
from mistral_portable_jax.cache import Cache
from mistral_portable_jax.failures import translated
from mistral_portable_jax.inputs import step_inputs
from mistral_portable_jax.step import PROCESS, Arrays, StepInputs, run
from mistral_portable_jax.weights import read

__all__ = ["JAXProgram"]

Result = TypeVar("Result")


class JAXProgram:
    """A Program whose cache is donated to each step, which writes to it in place and returns it.

    Calls run in one thread of the program's own, one after the other. Ctrl-C, which Python raises in the main thread,
    can therefore not come between the cache that a step takes and the one that it returns.

    A step that fails has not taken place. If it fails before XLA has taken the cache, nothing else changes. If it
    fails later, all keys and values are lost: the program starts an empty cache, sequences that begin anew work, and to
    step on from a lost page, or to read it, raises CapacityError.
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
        notice_unpacked(graph, weights, dtype, "this backend computes with floats only")
        self._weights: Arrays = self._in_turn(partial(read, graph, weights, dtype, progress))
        self._cache = self._in_turn(lambda: Cache(spec, dtype))

    @property
    def cache_bytes(self) -> int:
        return self._cache.nbytes

    @property
    def scratch_bytes(self) -> int:
        return 0  # XLA owns it

    def slot_bytes(self, group: int) -> int:
        return self._cache.slot_bytes(group)

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, NDArray[Any]]:
        check_inputs(self._graph, plan, inputs)
        return self._in_turn(partial(self._run, plan, inputs))

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        return self._in_turn(lambda: self._cache.read(group, pages, blank))

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        self._in_turn(lambda: self._cache.write(group, pages, state))

    def close(self) -> None:
        if PROCESS.forked:  # the parent's arrays, and a thread that is not here
            return
        self._worker.shutdown()
        self._weights, self._cache.arrays = {}, {}

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
        self._cache.make_room(plan)
        arrays = step_inputs(plan, inputs, self._spec, self._graph, self.precision.dtype)
        try:
            # A device may fail after the call has returned, so the arrays are waited for here.
            outputs, cache = jax.block_until_ready(self._step(self._weights, self._cache.arrays, arrays))
        except jax.errors.JaxRuntimeError as error:
            subject = f"a step of {len(plan.tokens)} tokens"
            if any(array.is_deleted() for array in self._cache.arrays.values()):
                self._cache.lose()
                subject += " (all sequences of this program have to start again)"
            raise translated(error, subject, "use shorter chunks, fewer sequences or --dtype bfloat16") from error
        self._cache.keep(plan, cache)
        return {name: self._output(name, array, plan) for name, array in outputs.items()}

    def _output(self, name: str, array: jax.Array, plan: StepPlan) -> NDArray[Any]:
        value = self._graph.outputs[name]
        shape, wide = self._shapes[value], np.float64 if self.precision.dtype == "float64" else np.float32
        count = len(plan.logit_rows) if shape[0] == "R" else len(plan.tokens)
        out = np.asarray(array)[:count].astype(wide)
        if shape[-1] != "K":
            return out
        node, spans = self._nodes[value], plan.spans
        group = self._spec.group_of(node.integer("layer"))
        offsets = plan.groups[group].first % self._spec.groups[group].page_size  # of the first position in its page

        def found(s: int, slots: NDArray[np.intp]) -> NDArray[Any]:
            return out[spans[s]][:, :, offsets[s] : offsets[s] + len(slots)]

        return attention_weights_by_position(node, plan, self._spec, found, wide)
