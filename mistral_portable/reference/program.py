"""ReferenceProgram: walks the graph node by node, and keeps the cache in plain arrays."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary.program import NO_INPUTS, Inputs, LaneState, Precision
from mistral_portable.boundary.shared import attention_weights_by_position, check_inputs, check_pages, read_slots
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
    """Keys and values of a layer: [slots, kv_heads, head_dim], the pages of its group's pool one after another.

    Slots that nothing was written to hold NaN, and so do those behind the last position of a sequence whose page was
    another's before or holds tokens that were taken back: to read one cannot go unnoticed.
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
        layers = [layer for group in cache.groups for layer in group.layers]
        empty = np.zeros((0, cache.num_key_value_heads, cache.head_dim), dtype)
        self._keys: dict[int, Floats] = dict.fromkeys(layers, empty)
        self._values: dict[int, Floats] = dict.fromkeys(layers, empty)
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

    def slot_bytes(self, group: int) -> int:
        return self._cache_spec.slot_bytes(group, np.dtype(self.precision.dtype).itemsize)

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, NDArray[Any]]:
        check_inputs(self._graph, plan, inputs)
        values: dict[str, Any] = {"tokens": plan.tokens, "positions": plan.positions, "logit_rows": plan.logit_rows}
        with self._in_turn(), self._threads():
            for group in range(len(self._cache_spec.groups)):
                self._make_room(plan, group)
            values |= {name: self._given(array) for name, array in inputs.items()}
            for node in self._graph.nodes:
                parameters = self._graph.parameters
                read = [self._parameter(name) if name in parameters else values[name] for name in node.inputs]
                values[node.name] = self._run(node, read, plan)
        return {name: np.array(values[value]) for name, value in self._graph.outputs.items()}

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        with self._in_turn():
            state = {name: self._by_page(pool, group)[list(pages)] for name, pool in self._pools(group)}
        for array in state.values():
            array[-1:, list(blank)] = 0
        return state

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        with self._in_turn():
            spec = self._cache_spec
            shape = spec.groups[group].page_size, spec.num_key_value_heads, spec.head_dim
            page = shape, self.precision.dtype
            check_pages(state, spec, group, len(pages), {"keys": page, "values": page})
            self._grow(group, max(pages, default=-1) + 1)
            for name, pool in self._pools(group):
                self._by_page(pool, group)[list(pages)] = state[name]

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

    def _pools(self, group: int) -> list[tuple[str, Floats]]:
        """The arrays of a layer group with their names in a LaneState."""
        stores = {"keys": self._keys, "values": self._values}
        layers = self._cache_spec.groups[group].layers
        return [(f"{kind}.{layer}", store[layer]) for kind, store in stores.items() for layer in layers]

    def _by_page(self, pool: Floats, group: int) -> Floats:
        """A view of a pool, [pages, page_size, kv_heads, head_dim]."""
        return pool.reshape(-1, self._cache_spec.groups[group].page_size, *pool.shape[1:])

    def _grow(self, group: int, count: int) -> None:
        """Let the pool of a layer group have `count` pages at least."""
        own = self._cache_spec.groups[group]
        for store in (self._keys, self._values):
            for layer in own.layers:
                pool = store[layer]
                if len(pool) < count * own.page_size:
                    more = np.full((count * own.page_size - len(pool), *pool.shape[1:]), np.nan, pool.dtype)
                    store[layer] = np.concatenate([pool, more])

    def _make_room(self, plan: StepPlan, group: int) -> None:
        """Grow the pool, copy pages, and void the slots behind each sequence's last position in the pages it writes."""
        own, reads = self._cache_spec.groups[group], plan.groups[group]
        self._grow(group, reads.page_count)
        begins = np.zeros(len(plan.tokens), np.bool_)
        begins[plan.query_starts[:-1]] = True
        if own.ring:  # behind the last position lie older ones
            voided = reads.slot_mapping[plan.positions == 0]
        else:
            voided = reads.slot_mapping[begins | (plan.positions % own.page_size == 0)]
        for _, pool in self._pools(group):
            pages = self._by_page(pool, group)
            pages[reads.copies[:, 1]] = pages[reads.copies[:, 0]]
            for slot in voided.tolist():
                pool[slot : (slot // own.page_size + 1) * own.page_size] = np.nan

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
            case "weigh":
                return ops.weigh(inputs[0], inputs[1])
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
            slots = read_slots(plan, self._cache_spec, group, s)
            values = self._values[node.integer("layer")][slots]
            out[tokens] = ops.attend(self._scores(node, q, plan, s, slots), values)
        return out

    def _attention_weights(self, node: Node, inputs: list[Floats], plan: StepPlan) -> Floats:
        q, k = inputs
        self._write(self._keys, node, k, plan)
        return attention_weights_by_position(
            node, plan, self._cache_spec, lambda s, slots: self._scores(node, q, plan, s, slots), q.dtype.type
        )

    def _scores(self, node: Node, q: Floats, plan: StepPlan, s: int, slots: NDArray[np.intp]) -> Floats:
        """The softmax of sequence s over the keys in `slots`, [tokens of s, heads, slots]."""
        tokens = plan.spans[s]
        heads = q[tokens].reshape(-1, node.integer("num_attention_heads"), node.integer("head_dim"))
        keys = self._keys[node.integer("layer")][slots]
        positions = np.arange(plan.ends[s] - len(slots), plan.ends[s])
        return ops.softmax_scores(heads, keys, plan.positions[tokens], positions, node.number("scale"), node.window)

    def _write(self, store: dict[int, Floats], node: Node, x: Floats, plan: StepPlan) -> None:
        """Put the rows of x [T, kv_heads * head_dim] into their slots."""
        layer = node.integer("layer")
        pool = store[layer]
        slots = plan.groups[self._cache_spec.group_of(layer)].slot_mapping
        pool[slots] = x.reshape(len(x), *pool.shape[1:])

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
