"""Attention over the ring as it lies: no key is moved, a mask over absolute positions hides what must not be seen."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheSpec, StepPlan, visible
from mistral_portable.config import Window

__all__ = ["LayerCache", "attention", "attention_weights"]

Floats = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class LayerCache:
    """One layer of all lanes. keys, values [max_lanes, slots, kv_heads, head_dim]; `group` indexes `plan.groups`."""

    group: int
    keys: Floats
    values: Floats

    @classmethod
    def empty(cls, spec: CacheSpec, layer: int) -> "LayerCache":
        """Zeros: a slot that nothing was written to gets the weight 0, and 0 * NaN would be NaN."""
        group = spec.group_of(layer)
        shape = (spec.max_lanes, spec.groups[group].slots, spec.num_key_value_heads, spec.head_dim)
        return cls(group, np.zeros(shape, np.float32), np.zeros(shape, np.float32))

    def write(self, array: Floats, x: Floats, plan: StepPlan) -> None:
        """Row t of x [T, kv_heads * head_dim] goes to its lane and slot, for all sequences at once."""
        lane_of_token = np.repeat(plan.lanes, np.diff(plan.query_starts))
        array[lane_of_token, plan.groups[self.group].slot_mapping] = x.reshape(len(x), *array.shape[2:])


def held_positions(last: int, slots: int, used: int) -> Integers:
    """The position that each of the first `used` slots holds once `last` is written; negative: nothing yet.

    It is the latest position up to `last` that is congruent to the slot: with 5 slots and last 5, 5 1 2 3 4.
    """
    return last - (last - np.arange(used)) % slots


def attention(
    cache: LayerCache, plan: StepPlan, q: Floats, k: Floats, v: Floats, *, scale: float, window: Window
) -> Floats:
    """q [T, heads * d], k, v [T, kv_heads * d] -> [T, heads * d]"""
    cache.write(cache.values, v, plan)
    out = np.empty_like(q)
    for s, (tokens, _, weights) in enumerate(_softmax(cache, plan, q, k, scale, window)):
        values = cache.values[plan.lanes[s], : weights.shape[-1]]
        out[tokens] = np.einsum("nhgc,chd->nhgd", weights, values).reshape(len(weights), -1)
    return out


def attention_weights(
    cache: LayerCache, plan: StepPlan, q: Floats, k: Floats, *, scale: float, window: Window
) -> Floats:
    """q [T, heads * d], k [T, kv_heads * d] -> [T, heads, K]; column j of a sequence is the position first + j."""
    first, last = plan.groups[cache.group].first, plan.positions[plan.query_starts[1:] - 1]
    out = np.zeros((len(q), q.shape[1] // cache.keys.shape[-1], np.max(last - first) + 1), np.float32)
    for s, (tokens, held, weights) in enumerate(_softmax(cache, plan, q, k, scale, window)):
        read = held >= first[s]
        out[tokens, :, held[read] - first[s]] = weights.reshape(len(weights), -1, len(held))[:, :, read]
    return out


def _softmax(
    cache: LayerCache, plan: StepPlan, q: Floats, k: Floats, scale: float, window: Window
) -> Iterator[tuple[slice, Integers, Floats]]:
    """Write k; then per sequence its tokens, the positions that its slots hold [C], the weights [n, kv_heads, g, C]."""
    cache.write(cache.keys, k, plan)
    _, slots, kv_heads, head_dim = cache.keys.shape
    used = plan.groups[cache.group].capacity  # no later slot holds anything yet
    for s, lane in enumerate(plan.lanes):
        tokens = slice(plan.query_starts[s], plan.query_starts[s + 1])
        positions = plan.positions[tokens]
        held = held_positions(int(positions[-1]), slots, used)
        heads = q[tokens].reshape(len(positions), kv_heads, -1, head_dim)  # head h reads key/value head h // g
        scores = np.einsum("nhgd,chd->nhgc", heads, cache.keys[lane, :used]) * np.float32(scale)
        # A slot may hold a later token that was rolled back; the position it should hold is then out of the window.
        seen = visible(positions[:, None], held[None, :], window) & (held >= 0)
        scores = np.where(seen[:, None, None, :], scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        yield tokens, held, weights / weights.sum(axis=-1, keepdims=True)
