"""ToyProgram: the graph as a list of closures, run in order."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mistral_portable.boundary import LaneState, Precision
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.boundary.shared import check_inputs, check_pages
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import ClosedError
from mistral_portable.graph import Graph
from mistral_portable.graph.passes import fuse_linears
from mistral_portable.weights import Tensor
from mistral_portable_toy.attention import Floats, LayerCache
from mistral_portable_toy.lowering import lower

__all__ = ["ToyProgram"]


class ToyProgram:
    """All weights are unpacked to float32, and pools of pages are copied to grow: simple, and large."""

    precision = Precision("float32")
    batch_invariant = False
    scratch_bytes = 0

    def __init__(self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> None:
        self._graph = graph = fuse_linears(graph)  # q, k, v become one matrix product, gate and up another
        self._spec = cache
        self._caches = {layer: LayerCache(cache, layer) for group in cache.groups for layer in group.layers}
        self._parameters: dict[str, Floats] = {
            name: np.concatenate([weights[part].numpy(np.float32) for part in parameter.parts])
            for name, parameter in graph.parameters.items()
        }
        self._steps = [(node.name, lower(node, self._caches), node.inputs) for node in graph.nodes]
        self._turn = threading.Lock()
        self._closed = False

    @property
    def cache_bytes(self) -> int:
        return sum(cache.keys.nbytes + cache.values.nbytes for cache in self._caches.values())

    def slot_bytes(self, group: int) -> int:
        return self._spec.slot_bytes(group, 4)

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Floats]:
        check_inputs(self._graph, plan, inputs)
        integers = {"tokens": plan.tokens, "positions": plan.positions, "logit_rows": plan.logit_rows}
        values: dict[str, Any] = {**self._parameters, **integers, **inputs}
        with self._in_turn():
            for cache in self._caches.values():
                cache.make_room(plan.groups[cache.group])
            for name, kernel, names in self._steps:
                values[name] = kernel(plan, *(values[value] for value in names))
        return {name: np.array(values[value]) for name, value in self._graph.outputs.items()}

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        with self._in_turn():
            layers = self._spec.groups[group].layers
            state = {f"keys.{layer}": self._caches[layer].keys[list(pages)] for layer in layers}
            state |= {f"values.{layer}": self._caches[layer].values[list(pages)] for layer in layers}
        for array in state.values():
            array[-1:, list(blank)] = 0
        return state

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        with self._in_turn():
            shape = self._spec.groups[group].page_size, self._spec.num_key_value_heads, self._spec.head_dim
            page = shape, "float32"
            check_pages(state, self._spec, group, len(pages), {"keys": page, "values": page})
            for layer in self._spec.groups[group].layers:
                cache = self._caches[layer]
                cache.grow(max(pages, default=-1) + 1)
                cache.keys[list(pages)], cache.values[list(pages)] = state[f"keys.{layer}"], state[f"values.{layer}"]

    def close(self) -> None:
        with self._turn:
            self._closed = True
            self._caches, self._parameters, self._steps = {}, {}, []

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """One call at a time, and none after `close`."""
        with self._turn:
            if self._closed:
                raise ClosedError("the program is closed: prepare it again")
            yield
