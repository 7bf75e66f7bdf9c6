"""ReferenceProgram: walks the graph node by node, and keeps the cache in plain arrays."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary.program import NO_INPUTS, Inputs, LaneState, Precision
from mistral_portable.boundary.shared import attention_weights_by_position, check_inputs, check_lane_state
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import BackendError, ClosedError
from mistral_portable.forks import make_locks
from mistral_portable.graph import Graph, Node, Parameter
from mistral_portable.reference import ops
from mistral_portable.weights import Tensor

__all__ = ["ReferenceProgram"]

Floats = NDArray[np.floating[Any]]

# Weights are converted to float once if that takes less than this, else at each use: slower, in little memory.
_RESIDENT_BYTES = 4 * 2**30


class ReferenceProgram:
    """Keys and values of a (layer, lane): [capacity, kv_heads, head_dim], grown as the plans ask.

    Slots that nothing was written to hold NaN, so that reading one cannot go unnoticed.
    """

    batch_invariant = False  # NumPy's BLAS adds up one token's products in another order than those of several

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        cache: CacheSpec,
        dtype: str,
        *,
        threads: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.precision = Precision(dtype)
        make_locks(self, ReferenceProgram._make_locks)
        self._closed = False
        self._threads = _blas_limit(threads)
        self._graph = graph
        self._cache_spec = cache
        self._weights = weights
        self._keys: dict[tuple[int, int], Floats] = {}
        self._values: dict[tuple[int, int], Floats] = {}
        numbers = sum(int(np.prod(parameter.shape)) for parameter in graph.parameters.values())
        self._resident: dict[str, Floats] = {}
        total = numbers * np.dtype(dtype).itemsize
        if total <= _RESIDENT_BYTES:
            done = 0
            for name, parameter in graph.parameters.items():
                self._resident[name] = self._read(parameter)
                done += self._resident[name].nbytes
                if progress is not None:
                    progress("weights", done, total)

    def _make_locks(self) -> None:
        self._turn = threading.Lock()

    @property
    def cache_bytes(self) -> int:
        return sum(array.nbytes for store in (self._keys, self._values) for array in store.values())

    @property
    def scratch_bytes(self) -> int:
        return 0  # a step's arrays end with it

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, NDArray[Any]]:
        check_inputs(self._graph, plan, inputs)
        values: dict[str, Any] = {"tokens": plan.tokens, "positions": plan.positions, "logit_rows": plan.logit_rows}
        with self._in_turn(), self._threads():
            values |= {name: self._given(array) for name, array in inputs.items()}
            for node in self._graph.nodes:
                parameters = self._graph.parameters
                read = [self._parameter(name) if name in parameters else values[name] for name in node.inputs]
                values[node.name] = self._run(node, read, plan)
        return {name: np.array(values[value]) for name, value in self._graph.outputs.items()}

    def copy_lane(self, source: int, target: int) -> None:
        with self._in_turn():
            self._load(target, self._save(source))

    def save_lane(self, lane: int) -> LaneState:
        with self._in_turn():
            return self._save(lane)

    def load_lane(self, lane: int, state: LaneState) -> None:
        with self._in_turn():
            self._load(lane, state)

    def close(self) -> None:
        with self._turn:
            self._closed = True
            self._keys.clear()
            self._values.clear()
            self._resident.clear()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        with self._turn:
            if self._closed:
                raise ClosedError("the program is closed: prepare it again")
            yield

    def _save(self, lane: int) -> LaneState:
        stores = {"keys": self._keys, "values": self._values}
        return {
            f"{name}.{layer}": array.copy()
            for name, store in stores.items()
            for (layer, owner), array in store.items()
            if owner == lane
        }

    def _load(self, lane: int, state: LaneState) -> None:
        spec = self._cache_spec
        row = (spec.num_key_value_heads, spec.head_dim), self.precision.dtype
        check_lane_state(state, spec, {"keys": row, "values": row})
        slots = {layer: group.slots for group in spec.groups for layer in group.layers}
        for name, array in state.items():
            kind, layer = name.split(".")
            (self._keys if kind == "keys" else self._values)[int(layer), lane] = array[: slots[int(layer)]].copy()

    def _given(self, array: NDArray[Any]) -> NDArray[Any]:
        """An input of the step: floats in the program's dtype, integers as they are."""
        return array.astype(self.precision.dtype) if array.dtype.kind == "f" else array

    def _run(self, node: Node, inputs: list[Any], plan: StepPlan) -> Floats:
        match node.op:
            case "embedding":
                return ops.embedding(inputs[0], inputs[1])
            case "rms_norm":
                return ops.rms_norm(inputs[0], inputs[1], node.number("eps"))
            case "linear":
                return ops.linear(*inputs)
            case "rope":
                return ops.rope(inputs[0], inputs[1], node.rotation)
            case "attention":
                return self._attention(node, inputs, plan)
            case "attention_weights":
                return self._attention_weights(node, inputs, plan)
            case "silu_mul":
                return ops.silu_mul(inputs[0], inputs[1])
            case "moe":
                return self._moe(node, inputs)
            case "add":
                return ops.add(inputs[0], inputs[1])
            case "take_columns":
                return ops.take_columns(inputs[0], node.integer("start"), node.integer("stop"))
            case "replace_rows":
                return ops.replace_rows(inputs[0], inputs[1], inputs[2])
            case "take_rows":
                return ops.take_rows(inputs[0], inputs[1])
        raise AssertionError(f"verified graphs have no op {node.op!r}")

    def _moe(self, node: Node, inputs: list[Any]) -> Floats:
        x, scores, gate, up, down = inputs
        return ops.moe(x, scores, gate, up, down, node.integer("top_k"))

    def _attention(self, node: Node, inputs: list[Floats], plan: StepPlan) -> Floats:
        q, k, v = inputs
        self._write(self._keys, node, k, plan)
        self._write(self._values, node, v, plan)
        out = np.empty_like(q)
        group = self._cache_spec.group_of(node.integer("layer"))
        for s, tokens in enumerate(plan.spans):
            slots = self._read_slots(plan, group, s)
            values = self._values[node.integer("layer"), int(plan.lanes[s])][slots]
            out[tokens] = ops.attend(self._scores(node, q, plan, s, slots), values)
        return out

    def _attention_weights(self, node: Node, inputs: list[Floats], plan: StepPlan) -> Floats:
        q, k = inputs
        self._write(self._keys, node, k, plan)
        return attention_weights_by_position(
            node, plan, self._cache_spec, lambda s, slots: self._scores(node, q, plan, s, slots), q.dtype.type
        )

    def _read_slots(self, plan: StepPlan, group: int, s: int) -> NDArray[np.intp]:
        """The slots of the keys that sequence s reads, in order of position."""
        return np.arange(plan.groups[group].first[s], plan.ends[s]) % self._cache_spec.groups[group].slots

    def _scores(self, node: Node, q: Floats, plan: StepPlan, s: int, slots: NDArray[np.intp]) -> Floats:
        """The softmax of sequence s over the keys in `slots`, [tokens of s, heads, slots]."""
        tokens = plan.spans[s]
        heads = q[tokens].reshape(-1, node.integer("num_attention_heads"), node.integer("head_dim"))
        keys = self._keys[node.integer("layer"), int(plan.lanes[s])][slots]
        positions = np.arange(plan.ends[s] - len(slots), plan.ends[s])
        return ops.softmax_scores(heads, keys, plan.positions[tokens], positions, node.number("scale"), node.window)

    def _write(self, store: dict[tuple[int, int], Floats], node: Node, x: Floats, plan: StepPlan) -> None:
        """Put the rows of x [T, kv_heads * head_dim] into their slots, growing the lanes to the plan's capacity."""
        spec = self._cache_spec
        layer = node.integer("layer")
        reads = plan.groups[spec.group_of(layer)]
        heads = x.reshape(len(x), spec.num_key_value_heads, spec.head_dim)
        for tokens, lane in zip(plan.spans, plan.lanes.tolist(), strict=True):
            array = store.get((layer, lane))
            held = 0 if array is None else len(array)
            if held < reads.capacity:
                grown = np.full((reads.capacity, *heads.shape[1:]), np.nan, x.dtype)
                if array is not None:
                    grown[:held] = array
                store[layer, lane] = array = grown
            assert array is not None
            array[reads.slot_mapping[tokens]] = heads[tokens]

    def _parameter(self, name: str) -> Floats:
        array = self._resident.get(name)
        return self._read(self._graph.parameters[name]) if array is None else array

    def _read(self, parameter: Parameter) -> Floats:
        parts: list[Floats] = [self._weights[part].numpy(np.dtype(self.precision.dtype)) for part in parameter.parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _blas_limit(threads: int | None) -> Callable[[], AbstractContextManager[object]]:
    """A context in which NumPy's matrix products use `threads` threads; None leaves them alone."""
    if threads is None:
        return nullcontext
    from threadpoolctl import ThreadpoolController

    blas = ThreadpoolController().select(user_api="blas")
    if not blas.info():
        raise BackendError(f"threads={threads}: this NumPy's BLAS has no thread count to set; leave the option out")
    return lambda: blas.limit(limits=threads)
