"""JAXFunction: a graph as a pure function of weights, cache and padded rows of tokens."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mistral_portable.graph import Graph, infer_shapes
from mistral_portable.weights import Tensor
from mistral_portable_jax.step import NOWHERE, Arrays, Inputs, run
from mistral_portable_jax.weights import read

__all__ = ["JAXFunction"]


class JAXFunction:
    """See PureFunction. It is compiled for each shape of its arguments, and may be part of what JAX traces.

    A row's token number p lies in slot p: a cache of `length` columns has room for all, and no ring ever turns.
    """

    def __init__(self, graph: Graph, dtype: str) -> None:
        self._graph, self._dtype = graph, dtype
        self._shapes = infer_shapes(graph)
        found: list[Any] = [node.attributes for node in graph.nodes if node.op == "attention"]
        self._layers: dict[int, Any] = {attributes["layer"]: attributes for attributes in found}
        self._compiled = jax.jit(self._traced)

    def weights(self, weights: Mapping[str, Tensor]) -> Arrays:
        return read(self._graph, weights, "float32")

    def init_cache(self, rows: int, length: int) -> Arrays:
        cache: Arrays = {
            "columns": jnp.zeros((), jnp.int32),
            "lengths": jnp.zeros(rows, jnp.int32),
            "positions": jnp.full((rows, length), -1, jnp.int32),
        }
        for layer, attributes in self._layers.items():
            shape: Any = (rows, length, attributes["num_key_value_heads"], attributes["head_dim"])
            cache |= {f"{kind}.{layer}": jnp.zeros(shape, self._dtype) for kind in ("keys", "values")}
        return cache

    def __call__(
        self, weights: Mapping[str, Any], cache: Mapping[str, Any], tokens: Any, kept: Any
    ) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        outputs, cache = self._compiled(dict(weights), dict(cache), jnp.asarray(tokens), jnp.asarray(kept, bool))
        return outputs, cache

    def _traced(self, weights: Arrays, cache: Arrays, tokens: Array, kept: Array) -> tuple[Arrays, Arrays]:
        rows, length = tokens.shape[:2]
        kept = jax.lax.dynamic_slice_in_dim(kept, cache["columns"], length, axis=1)  # clamped: all, if it is no longer
        slots = cache["positions"].shape[1]
        counts = cache["lengths"][:, None] + jnp.cumsum(kept, axis=1, dtype=jnp.int32)
        positions = jnp.maximum(counts - 1, 0).ravel()
        columns = jnp.arange(rows * length)
        inputs = Inputs(
            tokens=tokens.reshape(rows * length, *tokens.shape[2:]),
            positions=positions,
            rows=columns,
            # From the host's float64, as a Program's: cosines of float32 angles are wrong at high positions.
            angles=tuple(
                jnp.asarray(rotation.table(np.arange(slots)))[positions] for rotation in self._graph.rotations
            ),
            sequence=columns // length,
            place=columns % length,
            packed=columns.reshape(rows, length),
            lanes=jnp.arange(rows),
            last=counts[:, -1] - 1,
            slots=(jnp.where(kept.ravel(), positions, NOWHERE),),
            rings=(jnp.asarray(slots),),
        )
        outputs, written = run(self._graph, dict.fromkeys(self._layers, 0), self._dtype, weights, cache, inputs)
        at = jax.lax.dynamic_update_slice(
            cache["positions"], jnp.where(kept, counts - 1, -1), (jnp.zeros((), jnp.int32), cache["columns"])
        )
        written |= {"columns": cache["columns"] + length, "lengths": counts[:, -1], "positions": at}
        return {name: self._placed(name, array, kept, at) for name, array in outputs.items()}, written

    def _placed(self, name: str, array: Array, kept: Array, positions: Array) -> Array:
        """[T, ...] -> [rows, columns, ...], attention weights [rows, heads, columns, cached columns]; 0 at padding."""
        out = array.reshape(*kept.shape, *array.shape[1:]).astype(jnp.float32)
        if self._shapes[self._graph.outputs[name]][-1] == "K":
            out = jnp.take_along_axis(out, jnp.maximum(positions, 0)[:, None, None], axis=-1)
            out = jnp.where((positions >= 0)[:, None, None], out, 0).swapaxes(1, 2)
            return jnp.where(kept[:, None, :, None], out, 0)
        return jnp.where(kept[:, :, None], out, 0)
