"""A step as a pure function: (weights, cache, integers) -> (outputs, cache)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mistral_portable.boundary.process import OwnProcess
from mistral_portable.cache import visible
from mistral_portable.graph import Graph, Node
from mistral_portable_jax.ops import OPS, product, rope

__all__ = ["NOWHERE", "PROCESS", "Arrays", "StepInputs", "run"]

Arrays = dict[str, Array]
"""JAX arrays by name."""

PROCESS = OwnProcess("JAX")
"""The process that runs JAX: this module is imported when the first program or pure function is made."""

NOWHERE = 2**31 - 1
"""The slot, page or row of padding: writes to it are dropped."""


class StepInputs(NamedTuple):
    """A StepPlan in arrays, padded: T tokens of S sequences, the longest of which has N; R rows are requested.

    tokens, positions: [T]. logit_rows: [R]. given: by name, for `Graph.given`. angles: [T, 2, head_dim / 2] for each
    rotation of the graph, cosines and sines. sequence, place: [T]; token t is number `place[t]` of the sequence
    `sequence[t]`. packed: [S, N], the inverse: the t at each place of each sequence. last: [S], the position of a
    sequence's last token. For each layer group slots [T], pages [S, P] and first [S], as in `cache.Reads`; P is padded,
    too. Arrays may be NumPy's; JAX copies them to its device.
    """

    tokens: Any
    positions: Any
    logit_rows: Any
    given: dict[str, Any]
    angles: tuple[Any, ...]
    sequence: Any
    place: Any
    packed: Any
    last: Any
    slots: tuple[Any, ...]
    pages: tuple[Any, ...]
    first: tuple[Any, ...]


def run(
    graph: Graph, groups: Mapping[int, int], dtype: str, weights: Mapping[str, Array], cache: Arrays, inputs: StepInputs
) -> tuple[Arrays, Arrays]:
    """Run the graph: its outputs by name, and the cache with the step's keys and values.

    groups: the layer group of each layer. weights: arrays by parameter. cache: keys.L and values.L of each layer L,
    [pages, page_size, key/value heads, head_dim]. Attention weights come out as [T, heads, C] in the order of the
    C = P * page_size slots of a sequence's pages.
    """
    values: dict[str, Any] = {
        **weights,
        **{name: _rounded(array, dtype) for name, array in inputs.given.items()},
        "tokens": inputs.tokens,
        "positions": inputs.positions,
        "logit_rows": inputs.logit_rows,
    }
    cache = dict(cache)
    masks: dict[tuple[int, int, int | None], Array] = {}
    for node in graph.nodes:
        read = [values[name] for name in node.inputs]
        attributes: Any = node.attributes
        if node.op == "rope":
            values[node.name] = rope(read[0], inputs.angles[graph.rotations.index(node.rotation)])
        elif node.op in ("attention", "attention_weights"):
            layer = node.integer("layer")
            group = groups[layer]
            for name, array in zip(("keys", "values"), read[1:], strict=False):
                key = f"{name}.{layer}"
                cache[key] = _written(cache[key], array, inputs, group)
            mask = group, cache[f"keys.{layer}"].shape[1], node.window
            if mask not in masks:  # layers of a group share it
                masks[mask] = _seen(inputs, *mask)
            values[node.name] = _attention(node, read[0], cache, inputs, inputs.pages[group], masks[mask])
        else:
            made = OPS[node.op](*read, **attributes)
            # The tables of a pure function are float32, whatever it computes in.
            values[node.name] = made.astype(dtype) if node.op == "embedding" else made
    return {name: values[value] for name, value in graph.outputs.items()}, cache


def _rounded(array: Array, dtype: str) -> Array:
    """An input beside the plan's: floats in the program's dtype."""
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _written(pool: Array, x: Array, inputs: StepInputs, group: int) -> Array:
    """Write the rows of x [T, key/value heads * head_dim] into their slots."""
    slots = pool.reshape(-1, *pool.shape[2:])
    rows = x.reshape(len(x), *pool.shape[2:]).astype(pool.dtype)
    return slots.at[inputs.slots[group]].set(rows, mode="drop").reshape(pool.shape)


def _seen(inputs: StepInputs, group: int, page_size: int, window: int | None) -> Array:
    """The attention mask, bool [S, N, C]: whether a query sees the key in each slot of its sequence's pages.

    A slot beyond the positions that the sequence reads is seen by no query, not even one of padding.
    """
    first, last = inputs.first[group][:, None], inputs.last[:, None]
    slots = inputs.pages[group].shape[1] * page_size
    held = first // page_size * page_size + jnp.arange(slots)  # the position that each slot is for
    seen: Array = visible(inputs.positions[inputs.packed][:, :, None], held[:, None], window)
    seen &= ((first <= held) & (held <= last))[:, None]
    return seen


def _attention(node: Node, q: Array, cache: Arrays, inputs: StepInputs, pages: Array, seen: Array) -> Array:
    """q [T, heads * d] -> [T, heads * d]; for `attention_weights` [T, heads, C]. Keys are read by slot."""
    layer = node.integer("layer")
    keys, values = (_lined_up(cache[f"{name}.{layer}"], pages) for name in ("keys", "values"))
    heads = q.reshape(len(q), keys.shape[2], -1, node.integer("head_dim"))[inputs.packed]
    scores = product("snhgd,schd->snhgc", heads, keys) * node.number("scale")
    # The minimum and not -inf: a row of padding sees no key, and its softmax and gradient must be finite.
    weights = jax.nn.softmax(jnp.where(seen[:, :, None, None], scores, jnp.finfo(scores.dtype).min), axis=-1)
    if node.op == "attention_weights":
        out = weights
    else:
        # Zeros where no query sees the slot: an earlier text may have left NaN there, and 0 * NaN is NaN.
        read = jnp.where(seen.any(axis=1)[:, :, None, None], values, 0)
        out = product("snhgc,schd->snhgd", weights.astype(q.dtype), read)
    shape = (len(q), -1, keys.shape[1]) if node.op == "attention_weights" else (len(q), -1)
    return out[inputs.sequence, inputs.place].reshape(shape).astype(q.dtype)


def _lined_up(pool: Array, pages: Array) -> Array:
    """The slots of each sequence's pages [S, P], in order: [S, C, key/value heads, head_dim]."""
    return pool[pages].reshape(len(pages), -1, *pool.shape[2:])
