"""Attention over whole pages: a mask over absolute positions hides what must not be seen."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheSpec, Reads, StepPlan, visible
from mistral_portable.config import Window

__all__ = ["LayerCache", "attention", "attention_weights"]

Floats = NDArray[np.float32]
Integers = NDArray[np.integer[Any]]


class LayerCache:
    """The keys and values of one layer, each [pages, page_size, kv_heads, head_dim]; `group` indexes `plan.groups`.

    New pages are zeros: a slot that nothing was written to gets the weight 0, and 0 * NaN would be NaN.
    """

    def __init__(self, spec: CacheSpec, layer: int) -> None:
        self.group = spec.group_of(layer)
        page = spec.groups[self.group].page_size, spec.num_key_value_heads, spec.head_dim
        self.keys: Floats = np.zeros((0, *page), np.float32)
        self.values = self.keys

    def make_room(self, reads: Reads) -> None:
        """Grow to the plan's pages, then copy those that it wants copied."""
        self.grow(reads.page_count)
        source, target = reads.copies.T
        self.keys[target], self.values[target] = self.keys[source], self.values[source]

    def grow(self, count: int) -> None:
        """Have `count` pages at least."""
        more = np.zeros((max(0, count - len(self.keys)), *self.keys.shape[1:]), np.float32)
        self.keys, self.values = np.concatenate([self.keys, more]), np.concatenate([self.values, more])

    def write(self, array: Floats, x: Floats, reads: Reads) -> None:
        """Row t of x [T, kv_heads * head_dim] goes to its slot, for all sequences at once."""
        array.reshape(-1, *array.shape[2:])[reads.slot_mapping] = x.reshape(len(x), *array.shape[2:])


def attention(
    cache: LayerCache, plan: StepPlan, q: Floats, k: Floats, v: Floats, *, scale: float, window: Window
) -> Floats:
    """q [T, heads * d], k, v [T, kv_heads * d] -> [T, heads * d]"""
    cache.write(cache.values, v, plan.groups[cache.group])
    out = np.empty_like(q)
    for s, (tokens, _, weights) in enumerate(_softmax(cache, plan, q, k, scale, window)):
        values = _lined_up(cache.values, plan.groups[cache.group], s)
        out[tokens] = np.einsum("nhgc,chd->nhgd", weights, values).reshape(len(weights), -1)
    return out


def attention_weights(
    cache: LayerCache, plan: StepPlan, q: Floats, k: Floats, *, scale: float, window: Window
) -> Floats:
    """q [T, heads * d], k [T, kv_heads * d] -> [T, heads, K]; column j of a sequence is the position first + j."""
    first = plan.groups[cache.group].first
    out = np.zeros((len(q), q.shape[1] // cache.keys.shape[-1], np.max(plan.ends - first)), np.float32)
    for s, (tokens, held, weights) in enumerate(_softmax(cache, plan, q, k, scale, window)):
        read = (first[s] <= held) & (held < plan.ends[s])
        out[tokens, :, held[read] - first[s]] = weights.reshape(len(weights), -1, len(held))[:, :, read]
    return out


def _lined_up(array: Floats, reads: Reads, s: int) -> Floats:
    """The slots of sequence s in order of position, [P * page_size, kv_heads, head_dim]."""
    slots: Floats = array[reads.pages[s]].reshape(-1, *array.shape[2:])
    return slots


def held_positions(first: int, pages: int, page_size: int) -> Integers:
    """The position that each slot of a sequence's pages is for, [pages * page_size], padding and later ones included.

    Two pages of 4 slots that are read from position 6 on: 4 5 6 7 8 9 10 11.
    """
    return first // page_size * page_size + np.arange(pages * page_size)


def _softmax(
    cache: LayerCache, plan: StepPlan, q: Floats, k: Floats, scale: float, window: Window
) -> Iterator[tuple[slice, Integers, Floats]]:
    """Write k; then per sequence its tokens, the positions that its slots hold [C], the weights [n, kv_heads, g, C]."""
    reads = plan.groups[cache.group]
    cache.write(cache.keys, k, reads)
    for s, tokens in enumerate(plan.spans):
        positions, keys = plan.positions[tokens], _lined_up(cache.keys, reads, s)
        held = held_positions(reads.first[s], reads.pages.shape[1], cache.keys.shape[1])
        heads = q[tokens].reshape(len(positions), keys.shape[1], -1, keys.shape[2])  # h reads key/value head h // g
        scores = np.einsum("nhgd,chd->nhgc", heads, keys) * np.float32(scale)
        # Slots behind the last position hold anything: zeros, tokens that were rolled back, another sequence's.
        seen = visible(positions[:, None], held[None, :], window)
        scores = np.where(seen[:, None, None, :], scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        yield tokens, held, weights / weights.sum(axis=-1, keepdims=True)
