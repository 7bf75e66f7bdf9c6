"""A step as a pure function: (weights, cache, integers) -> (outputs, cache)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mistral_portable.cache import visible
from mistral_portable.graph import Graph
from mistral_portable_jax.ops import OPS, product, rope

__all__ = ["NOWHERE", "Arrays", "Inputs", "run"]

Arrays = dict[str, Array]

NOWHERE = 2**30
"""The slot of a token that is padding: what is written there is dropped."""


class Inputs(NamedTuple):
    """A StepPlan in arrays, padded: T tokens of S sequences, the longest of which has N; R rows are wanted.

    tokens [T], or [T, hidden_size] in place of their embeddings; positions [T]; rows [R]. angles: [T, 2, head_dim / 2]
    for each rotation of the graph. Token t is the one at `place[t]` of the sequence `sequence[t]`, [T] both; packed
    [S, N] is the way back. lanes [S]; last [S]: the position of a sequence's last token. By layer group: slots [T], and
    rings, how many slots a full lane has. They may be NumPy's, which JAX takes to its device.
    """

    tokens: Any
    positions: Any
    rows: Any
    angles: tuple[Any, ...]
    sequence: Any
    place: Any
    packed: Any
    lanes: Any
    last: Any
    slots: tuple[Any, ...]
    rings: tuple[Any, ...]


def run(
    graph: Graph, groups: Mapping[int, int], dtype: str, weights: Mapping[str, Array], cache: Arrays, inputs: Inputs
) -> tuple[Arrays, Arrays]:
    """The outputs by name, and the cache with the step's keys and values.

    groups: the layer group of each layer. weights: by parameter. cache: keys.L and values.L of each layer,
    [lanes, slots, key/value heads, head_dim]. Attention weights come out as [T, heads, slots].
    """
    values: dict[str, Any] = {**weights, "tokens": inputs.tokens, "positions": inputs.positions, "rows": inputs.rows}
    cache = dict(cache)
    for node in graph.nodes:
        read = [values[name] for name in node.inputs]
        attributes: Any = node.attributes
        if node.op == "rope":
            values[node.name] = rope(read[0], inputs.angles[graph.rotations.index(attributes["rotation"])])
        elif node.op in ("attention", "attention_weights"):
            group = groups[attributes["layer"]]
            for name, array in zip(("keys", "values"), read[1:], strict=False):
                key = f"{name}.{attributes['layer']}"
                cache[key] = _written(cache[key], array, inputs, group)
            values[node.name] = _attention(node.op, attributes, read[0], cache, inputs, group)
        else:
            made = OPS[node.op](*read, **attributes)
            values[node.name] = made.astype(dtype) if node.op == "embedding" else made
    return {name: values[value] for name, value in graph.outputs.items()}, cache


def _written(array: Array, x: Array, inputs: Inputs, group: int) -> Array:
    """With the rows of x [T, key/value heads * head_dim] in their lanes and slots."""
    at = array.at[inputs.lanes[inputs.sequence], inputs.slots[group]]
    return at.set(x.reshape(len(x), *array.shape[2:]).astype(array.dtype), mode="drop")


def _attention(op: str, attributes: Any, q: Array, cache: Arrays, inputs: Inputs, group: int) -> Array:
    """q [T, heads * d] -> [T, heads * d], or of `attention_weights` [T, heads, slots]. Lanes are read as they lie."""
    keys, values = (cache[f"{name}.{attributes['layer']}"][inputs.lanes] for name in ("keys", "values"))
    last, slots = inputs.last[:, None], keys.shape[1]
    held = last - (last - jnp.arange(slots)) % inputs.rings[group]  # the position in each slot, < 0: nothing yet
    seen: Array = visible(inputs.positions[inputs.packed][:, :, None], held[:, None], attributes["window"])
    seen &= held[:, None] >= 0
    heads = q.reshape(len(q), keys.shape[2], -1, attributes["head_dim"])[inputs.packed]
    scores = product("snhgd,schd->snhgc", heads, keys) * attributes["scale"]
    # Finite even where nothing is seen, as padding: a gradient goes through that, too.
    weights = jax.nn.softmax(jnp.where(seen[:, :, None, None], scores, jnp.finfo(scores.dtype).min), axis=-1)
    if op == "attention_weights":
        out = weights
    else:
        read = jnp.where(seen.any(axis=1)[:, :, None, None], values, 0)  # 0 * NaN, of an earlier text, would be NaN
        out = product("snhgc,schd->snhgd", weights.astype(q.dtype), read)
    shape = (len(q), -1, slots) if op == "attention_weights" else (len(q), -1)
    return out[inputs.sequence, inputs.place].reshape(shape).astype(q.dtype)
