"""JAXFunction: a graph as a pure function of weights, cache and padded rows of tokens."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mistral_portable.graph import Graph, infer_shapes
from mistral_portable.weights import Tensor
from mistral_portable_jax.step import NOWHERE, PROCESS, Arrays, StepInputs, run
from mistral_portable_jax.weights import read

__all__ = ["JAXFunction"]


class JAXFunction:
    """A PureFunction, compiled for each shape of its arguments; it may also be traced as a part of another function.

    A cache of `length` columns has a page of as many slots for each row, and token number p of the row, padding not
    counted, lies in slot p of it.
    """

    def __init__(self, graph: Graph, dtype: str) -> None:
        PROCESS.require()
        self._graph, self._dtype = graph, dtype
        self._shapes = infer_shapes(graph)
        self._layers = {node.integer("layer"): node for node in graph.nodes if node.op == "attention"}
        self._compiled = jax.jit(self._traced)

    def weights(self, weights: Mapping[str, Tensor]) -> Arrays:
        PROCESS.require()
        return read(self._graph, weights, "float32")

    def init_cache(self, rows: int, length: int) -> Arrays:
        PROCESS.require()
        cache: Arrays = {
            "columns": jnp.zeros((), jnp.int32),
            "lengths": jnp.zeros(rows, jnp.int32),
            "positions": jnp.full((rows, length), -1, jnp.int32),
        }
        for layer, node in self._layers.items():
            shape = (rows, length, node.integer("num_key_value_heads"), node.integer("head_dim"))
            cache |= {f"{kind}.{layer}": jnp.zeros(shape, self._dtype) for kind in ("keys", "values")}
        return cache

    def __call__(
        self, weights: Mapping[str, Any], cache: Mapping[str, Any], tokens: Any, kept: Any
    ) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        PROCESS.require()
        outputs, cache = self._compiled(dict(weights), dict(cache), jnp.asarray(tokens), jnp.asarray(kept, bool))
        return outputs, cache

    def _traced(self, weights: Arrays, cache: Arrays, tokens: Array, kept: Array) -> tuple[Arrays, Arrays]:
        rows, length = tokens.shape
        # The slice is clamped, so a mask of these columns only stays whole.
        kept = jax.lax.dynamic_slice_in_dim(kept, cache["columns"], length, axis=1)
        page_size = cache["positions"].shape[1]
        counts = cache["lengths"][:, None] + jnp.cumsum(kept, axis=1, dtype=jnp.int32)
        positions = jnp.maximum(counts - 1, 0).ravel()
        columns = jnp.arange(rows * length)
        inputs = StepInputs(
            tokens=tokens.ravel(),
            positions=positions,
            logit_rows=columns,
            given={},
            # Computed by the host in float64: the cosines of float32 angles are wrong at high positions.
            angles=tuple(
                jnp.asarray(rotation.table(np.arange(page_size)))[positions] for rotation in self._graph.rotations
            ),
            sequence=columns // length,
            place=columns % length,
            packed=columns.reshape(rows, length),
            last=counts[:, -1] - 1,
            slots=(jnp.where(kept.ravel(), columns // length * page_size + positions, NOWHERE),),
            pages=(jnp.arange(rows)[:, None],),
            first=(jnp.zeros(rows, jnp.int32),),
        )
        outputs, written = run(self._graph, dict.fromkeys(self._layers, 0), self._dtype, weights, cache, inputs)
        at = jax.lax.dynamic_update_slice(
            cache["positions"], jnp.where(kept, counts - 1, -1), (jnp.zeros((), jnp.int32), cache["columns"])
        )
        written |= {"columns": cache["columns"] + length, "lengths": counts[:, -1], "positions": at}
        return {name: self._placed(name, array, kept, at) for name, array in outputs.items()}, written

    def _placed(self, name: str, array: Array, kept: Array, positions: Array) -> Array:
        """Give each output its rows again: [T, ...] -> [rows, columns, ...], 0 at padding.

        Attention weights become [rows, heads, columns, cached columns].
        """
        out = array.reshape(*kept.shape, *array.shape[1:]).astype(jnp.float32)
        if self._shapes[self._graph.outputs[name]][-1] == "K":
            out = jnp.take_along_axis(out, jnp.maximum(positions, 0)[:, None, None], axis=-1)
            out = jnp.where((positions >= 0)[:, None, None], out, 0).swapaxes(1, 2)
            return jnp.where(kept[:, None, :, None], out, 0)
        return jnp.where(kept[:, :, None], out, 0)
