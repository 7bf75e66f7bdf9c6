"""ReferenceProgram: walks the graph node by node, and keeps the cache in plain arrays."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import BackendError, CacheError
from mistral_portable.executor import LaneState, Precision
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

    @property
    def cache_bytes(self) -> int:
        return sum(array.nbytes for store in (self._keys, self._values) for array in store.values())

    def step(self, plan: StepPlan, inputs_embeds: NDArray[np.float32] | None = None) -> dict[str, NDArray[Any]]:
        values: dict[str, Any] = {"tokens": plan.tokens, "positions": plan.positions, "rows": plan.rows}
        with self._threads():
            for node in self._graph.nodes:
                parameters = self._graph.parameters
                inputs = [self._parameter(name) if name in parameters else values[name] for name in node.inputs]
                given = inputs_embeds if node.op == "embedding" else None
                values[node.name] = self._run(node, inputs, plan) if given is None else given.astype(inputs[1].dtype)
        return {name: np.array(values[value]) for name, value in self._graph.outputs.items()}

    def copy_lane(self, source: int, target: int) -> None:
        self.load_lane(target, self.save_lane(source))

    def save_lane(self, lane: int) -> LaneState:
        stores = {"keys": self._keys, "values": self._values}
        return {
            f"{name}.{layer}": array.copy()
            for name, store in stores.items()
            for (layer, owner), array in store.items()
            if owner == lane
        }

    def load_lane(self, lane: int, state: LaneState) -> None:
        spec = self._cache_spec
        slots = {layer: group.slots for group in spec.groups for layer in group.layers}
        names = {f"{kind}.{layer}" for layer in slots for kind in ("keys", "values")}
        if state and set(state) != names:  # a lane that was saved before its first step is empty
            raise CacheError(f"the saved lane holds {', '.join(sorted(state))}: not the layers of this model")
        for name, array in state.items():
            layer = name.split(".")[1]
            if array.shape[1:] != (spec.num_key_value_heads, spec.head_dim) or array.dtype != self.precision.dtype:
                raise CacheError(f"the saved lane does not fit this model: {name} is {array.dtype} {array.shape}")
            if len(array) != len(state[f"keys.{layer}"]):
                raise CacheError(f"the saved lane is broken: {name} has {len(array)} slots, its keys have others")
        for name, array in state.items():
            kind, layer = name.split(".")
            (self._keys if kind == "keys" else self._values)[int(layer), lane] = array[: slots[int(layer)]].copy()

    def close(self) -> None:
        self._keys.clear()
        self._values.clear()
        self._resident.clear()

    def _run(self, node: Node, inputs: list[Any], plan: StepPlan) -> Floats:
        attributes: Any = node.attributes
        match node.op:
            case "embedding":
                return ops.embedding(inputs[0], inputs[1])
            case "rms_norm":
                return ops.rms_norm(inputs[0], inputs[1], attributes["eps"])
            case "linear":
                return ops.linear(*inputs)
            case "rope":
                return ops.rope(inputs[0], inputs[1], attributes["rotation"])
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
                return ops.take_columns(inputs[0], attributes["start"], attributes["stop"])
            case "take_rows":
                return ops.take_rows(inputs[0], inputs[1])
        raise AssertionError(f"verified graphs have no op {node.op!r}")

    def _moe(self, node: Node, inputs: list[Any]) -> Floats:
        x, scores, gate, up, down = inputs
        top_k: Any = node.attributes["top_k"]
        return ops.moe(x, scores, gate, up, down, top_k)

    def _attention(self, node: Node, inputs: list[Floats], plan: StepPlan) -> Floats:
        q, k, v = inputs
        self._write(self._keys, node, k, plan)
        self._write(self._values, node, v, plan)
        layer: Any = node.attributes["layer"]
        out = np.empty_like(q)
        for tokens, lane, slots, weights in self._scores(node, q, plan):
            out[tokens] = ops.attend(weights, self._values[layer, lane][slots])
        return out

    def _attention_weights(self, node: Node, inputs: list[Floats], plan: StepPlan) -> Floats:
        q, k = inputs
        self._write(self._keys, node, k, plan)
        scores = list(self._scores(node, q, plan))
        longest = max(weights.shape[-1] for *_, weights in scores)
        out: Floats = np.zeros((len(q), scores[0][-1].shape[1], longest), q.dtype)
        for tokens, _, _, weights in scores:
            out[tokens, :, : weights.shape[-1]] = weights
        return out

    def _scores(self, node: Node, q: Floats, plan: StepPlan) -> Iterator[tuple[slice, int, NDArray[np.int64], Floats]]:
        """Per sequence: its tokens, its lane, the slots of the keys it reads in order of position, the softmax."""
        attributes: Any = node.attributes
        group = self._cache_spec.group_of(attributes["layer"])
        reads, ring = plan.groups[group], self._cache_spec.groups[group].slots
        for s, lane in enumerate(plan.lanes.tolist()):
            tokens = slice(int(plan.starts[s]), int(plan.starts[s + 1]))
            query_positions = plan.positions[tokens]
            key_positions = np.arange(reads.first[s], query_positions[-1] + 1)
            slots = key_positions % ring
            heads = q[tokens].reshape(len(query_positions), -1, attributes["head_dim"])
            keys = self._keys[attributes["layer"], lane][slots]
            yield (
                tokens,
                lane,
                slots,
                ops.softmax_scores(
                    heads, keys, query_positions, key_positions, attributes["scale"], attributes["window"]
                ),
            )

    def _write(self, store: dict[tuple[int, int], Floats], node: Node, x: Floats, plan: StepPlan) -> None:
        """Put the rows of x [T, kv_heads * head_dim] into their slots, growing the lanes to the plan's capacity."""
        spec = self._cache_spec
        layer: Any = node.attributes["layer"]
        reads = plan.groups[spec.group_of(layer)]
        heads = x.reshape(len(x), spec.num_key_value_heads, spec.head_dim)
        for s, lane in enumerate(plan.lanes.tolist()):
            tokens = slice(int(plan.starts[s]), int(plan.starts[s + 1]))
            array = store.get((layer, lane))
            held = 0 if array is None else len(array)
            if held < reads.capacity:
                grown = np.full((reads.capacity, *heads.shape[1:]), np.nan, x.dtype)
                if array is not None:
                    grown[:held] = array
                store[layer, lane] = array = grown
            assert array is not None
            array[reads.slots[tokens]] = heads[tokens]

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
