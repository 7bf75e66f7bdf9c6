"""Pools of pages of cached keys and values: growth, copies, and their addresses for the kernels."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import LaneState
from mistral_portable.boundary.shared import check_pages
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable_numba.layouts import KV_BESIDE, KV_DTYPES, PAGE_SIZE, head_bytes, head_width, round_up
from mistral_portable_numba.memory import in_huge_pages

__all__ = ["KVCache"]

_KINDS = ("keys", "values")

_Pool = NDArray[np.uint8]
"""[pages, key/value heads, bytes of a head in a page], see `layouts.py`."""


class KVCache:
    """A pool of keys and one of values for each layer. The layers of a group have the same number of pages."""

    def __init__(self, spec: CacheSpec, dtype: str) -> None:
        self._spec = spec
        self._dtype = dtype
        self._head_bytes = head_bytes(dtype, spec.head_dim)
        layers = [layer for group in spec.groups for layer in group.layers]
        self._pools = {(layer, kind): self._zeros(kind, 0) for layer in layers for kind in _KINDS}
        self._addresses = {layer: np.zeros(len(_KINDS), np.int64) for layer in layers}
        self._counts = [0] * len(spec.groups)

    @property
    def bytes(self) -> int:
        """Bytes of all pools."""
        return sum(pool.nbytes for pool in list(self._pools.values()))  # a step may grow some meanwhile

    def slot_bytes(self, group: int) -> int:
        """Bytes of a slot in all layers of a group."""
        page = sum(self._head_bytes.values()) * self._spec.num_key_value_heads
        return page * len(self._spec.groups[group].layers) // PAGE_SIZE

    def address(self, layer: int, kind: str = "keys") -> int:
        """The address where the address of a layer's pool stands; that of its values follows that of its keys."""
        return int(self._addresses[layer][_KINDS.index(kind) :].ctypes.data)

    def make_room(self, plan: StepPlan) -> None:
        """Grow the pools to the plan's pages, then make its copies. Raises MemoryError; nothing has changed then."""
        self._grow({group: reads.page_count for group, reads in enumerate(plan.groups)})
        for group, reads in enumerate(plan.groups):
            for source, target in reads.copies.tolist():
                for key in self._keys_of(group):
                    self._pools[key][target] = self._pools[key][source]

    def keys(self, layer: int, slots: NDArray[np.intp]) -> NDArray[np.float32]:
        """The keys in these slots, float32 [slots, key/value heads, head_dim]."""
        pool, number, head_dim = self._pools[layer, "keys"], KV_DTYPES[self._dtype], self._spec.head_dim
        beside = KV_BESIDE[self._dtype]
        end = PAGE_SIZE * round_up(head_dim, beside) * number.itemsize
        pages, offsets = slots // PAGE_SIZE, slots % PAGE_SIZE
        numbers = pool[..., :end].view(number).reshape(*pool.shape[:2], -1, PAGE_SIZE, beside)[pages, :, :, offsets]
        values = numbers.reshape(*numbers.shape[:2], -1)[..., :head_dim].astype(np.float32)
        if self._dtype == "q8_0":
            scales = pool[..., end:].view(np.float16).reshape(*pool.shape[:2], -1, PAGE_SIZE)
            factors = scales[pages, :, :, offsets].astype(np.float32)
            values *= np.repeat(factors, 32, axis=-1)[..., :head_dim]
        return values

    def read(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        """Copies of a layer group's pages by "keys.LAYER" and "values.LAYER", uint8 [pages, heads, bytes of a head].
        The slots `blank` of the last page are zeros."""
        state = {f"{kind}.{layer}": self._pools[layer, kind][list(pages)] for layer, kind in self._keys_of(group)}
        for name, array in state.items() if blank else ():
            self._empty(name.partition(".")[0], array[-1:], np.array(blank, np.intp))
        return state

    def write(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        """Put arrays of `read` into pages. Raises CacheError if they are not this model's; an error changes nothing."""
        heads = self._spec.num_key_value_heads
        rows = {kind: ((heads, size), "uint8") for kind, size in self._head_bytes.items()}
        check_pages(state, self._spec, group, len(pages), rows)
        self._grow({group: max(pages, default=-1) + 1})
        for layer, kind in self._keys_of(group):
            self._pools[layer, kind][list(pages)] = state[f"{kind}.{layer}"]

    def clear(self) -> None:
        """Free all pools."""
        self._counts = [0] * len(self._counts)
        for layer, kind in self._pools:
            self._put(layer, kind, self._zeros(kind, 0))

    def _grow(self, counts: Mapping[int, int]) -> None:
        """Let the pools of layer groups have at least so many pages, or raise MemoryError and leave all as they are.

        By a quarter at least, so that it is rare, if there is memory for that. Pages without content take none: the
        system gives it to zeros when they are first written, up to 2 MiB at a time.
        """
        short = {group: count for group, count in counts.items() if count > self._counts[group]}
        if not short:
            return
        held = {group: max(len(self._pools[key]) for key in self._keys_of(group)) for group in short}
        larger = {group: max(count, -(-5 * held[group] // 4)) for group, count in short.items()}
        try:
            grown = self._new_pools(larger)
        except MemoryError:
            larger = {group: max(count, held[group]) for group, count in short.items()}
            grown = self._new_pools(larger)
        for group in short:
            self._counts[group] = 0  # if Ctrl-C comes before the end, the next step does it all again
        for (layer, kind), pool in grown.items():  # one after the other, so that few pages are there twice
            old = self._pools[layer, kind]
            pool[: len(old)] = old
            self._put(layer, kind, pool)
        for group, count in larger.items():
            self._counts[group] = count

    def _new_pools(self, counts: Mapping[int, int]) -> dict[tuple[int, str], _Pool]:
        """Pools of so many pages for all layers of these layer groups."""
        return {
            (layer, kind): self._zeros(kind, count)
            for group, count in counts.items()
            for layer, kind in self._keys_of(group)
        }

    def _empty(self, kind: str, pages: _Pool, slots: NDArray[np.intp]) -> None:
        """Set slots of all these pages to zero, numbers and scales."""
        number, head_dim, beside = KV_DTYPES[self._dtype], self._spec.head_dim, KV_BESIDE[self._dtype]
        columns = head_width(head_dim) if kind == "values" else round_up(head_dim, beside)
        end = PAGE_SIZE * columns * number.itemsize
        numbers, scales = pages[..., :end].view(number), pages[..., end:].view(np.float16)
        if kind == "keys":
            numbers.reshape(*pages.shape[:2], -1, PAGE_SIZE, beside)[:, :, :, slots] = 0
        else:
            values = numbers.reshape(*pages.shape[:2], -1, PAGE_SIZE // beside, 32, beside)
            values[:, :, :, slots // beside, :, slots % beside] = 0
        scales.reshape(*pages.shape[:2], -1, PAGE_SIZE)[..., slots] = 0

    def _zeros(self, kind: str, pages: int) -> _Pool:
        return in_huge_pages((pages, self._spec.num_key_value_heads, self._head_bytes[kind]), zeros=True)

    def _put(self, layer: int, kind: str, pool: _Pool) -> None:
        """Let kernels find the pool."""
        self._pools[layer, kind] = pool
        self._addresses[layer][_KINDS.index(kind)] = pool.ctypes.data

    def _keys_of(self, group: int) -> list[tuple[int, str]]:
        """The keys of a layer group in `_pools`."""
        return [(layer, kind) for layer in self._spec.groups[group].layers for kind in _KINDS]
