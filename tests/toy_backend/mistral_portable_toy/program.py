"""ToyProgram: the graph as a list of closures, run in order."""

from collections.abc import Mapping

import numpy as np

from mistral_portable.boundary import LaneState, Precision
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import CacheError
from mistral_portable.graph import Graph
from mistral_portable.graph.passes import fuse_linears
from mistral_portable.weights import Tensor
from mistral_portable_toy.attention import Floats, LayerCache
from mistral_portable_toy.lowering import lower

__all__ = ["ToyProgram"]


class ToyProgram:
    """All weights are unpacked to float32 and all lanes are allocated at once: simple, and large."""

    precision = Precision("float32")

    def __init__(self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> None:
        graph = fuse_linears(graph)  # q, k, v become one matrix product, gate and up another
        self._caches = {layer: LayerCache.empty(cache, layer) for group in cache.groups for layer in group.layers}
        self._parameters: dict[str, Floats] = {
            name: np.concatenate([weights[part].numpy(np.float32) for part in parameter.parts])
            for name, parameter in graph.parameters.items()
        }
        self._steps = [(node.name, lower(node, self._caches), node.inputs) for node in graph.nodes]
        self._outputs = graph.outputs

    @property
    def cache_bytes(self) -> int:
        return sum(cache.keys.nbytes + cache.values.nbytes for cache in self._caches.values())

    def step(self, plan: StepPlan, inputs_embeds: Floats | None = None) -> dict[str, Floats]:
        tokens = plan.tokens if inputs_embeds is None else inputs_embeds
        values = {**self._parameters, "tokens": tokens, "positions": plan.positions, "rows": plan.logit_rows}
        for name, kernel, inputs in self._steps:
            values[name] = kernel(plan, *(values[value] for value in inputs))
        return {name: np.array(values[value]) for name, value in self._outputs.items()}

    def copy_lane(self, source: int, target: int) -> None:
        self.load_lane(target, self.save_lane(source))

    def save_lane(self, lane: int) -> LaneState:
        arrays = {f"keys.{layer}": cache.keys[lane].copy() for layer, cache in self._caches.items()}
        return arrays | {f"values.{layer}": cache.values[lane].copy() for layer, cache in self._caches.items()}

    def load_lane(self, lane: int, state: LaneState) -> None:
        own = self.save_lane(lane)
        if {name: array.shape for name, array in state.items()} != {name: array.shape for name, array in own.items()}:
            raise CacheError("the saved lane does not fit: it comes from another model, max_chunk or max_context")
        for layer, cache in self._caches.items():
            cache.keys[lane], cache.values[lane] = state[f"keys.{layer}"], state[f"values.{layer}"]

    def close(self) -> None:
        self._caches, self._parameters, self._steps = {}, {}, []
