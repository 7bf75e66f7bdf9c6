"""The arrays of cached keys and values: growth, copies, and the tables with their addresses for the kernels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import LaneState
from mistral_portable.boundary.shared import check_lane_state
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable_numba.layouts import KV_DTYPES, SLOT_BLOCK, head_width, round_up

__all__ = ["KVCache"]

_Arrays = NDArray[np.uint8]  # [key/value heads, bytes of a head]


class KVCache:
    """Keys and values of each layer and lane in the layout of `layouts.py`. Arrays grow to the plans' capacities."""

    def __init__(self, spec: CacheSpec, dtype: str) -> None:
        self._spec = spec
        self._dtype = dtype
        self._number = KV_DTYPES[dtype].itemsize
        self._layers = {layer: group.slots for group in spec.groups for layer in group.layers}
        self._arrays: dict[tuple[int, int, str], _Arrays] = {}
        self.tables = {layer: np.zeros((spec.max_lanes, 3), np.int64) for layer in self._layers}
        """Per layer and lane: the addresses of the keys and of the values, and the allocated slots."""
        self._slots = {(group, lane): 0 for group in range(len(spec.groups)) for lane in range(spec.max_lanes)}

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in list(self._arrays.values()))  # a step may add some meanwhile

    def grow(self, plan: StepPlan) -> None:
        """Grow the plan's lanes to its capacities. Raises MemoryError; arrays that have grown by then stay."""
        lanes = plan.lanes.tolist()
        for group, reads in enumerate(plan.groups):
            for lane in lanes:
                if self._slots[group, lane] < reads.capacity:
                    slots = round_up(reads.capacity, SLOT_BLOCK)
                    for layer in self._spec.groups[group].layers:
                        if self.tables[layer][lane, 2] < slots:
                            self._resize(layer, lane, slots)
                    self._slots[group, lane] = slots

    def keys(self, layer: int, lane: int, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """The keys in these slots, float32 [slots, key/value heads, head_dim]."""
        numbers, scales = self._parts(self._arrays[layer, lane, "keys"], "keys")
        heads, head_dim = self._spec.num_key_value_heads, self._spec.head_dim
        picked = numbers.reshape(heads, -1, head_dim, 16).transpose(1, 3, 0, 2).reshape(-1, heads, head_dim)[slots]
        values = picked.astype(np.float32)
        if scales is not None:
            groups = head_width(head_dim) // 32
            factors = scales.reshape(heads, -1, groups, 16).transpose(1, 3, 0, 2).reshape(-1, heads, groups)[slots]
            values *= np.repeat(factors.astype(np.float32), 32, axis=-1)[..., :head_dim]
        return values

    def save(self, lane: int) -> LaneState:
        """Copies of a lane's arrays, by "keys.LAYER" and "values.LAYER", [heads, blocks, numbers of SLOT_BLOCK slots].

        q8_0 has scales beside them, "keys.LAYER.scales" and "values.LAYER.scales", of shapes made in the same way.
        """
        state: dict[str, NDArray[Any]] = {}
        for layer in self._layers:
            for kind in ("keys", "values"):
                if (array := self._arrays.get((layer, lane, kind))) is not None:
                    blocks = len(array), int(self.tables[layer][lane, 2]) // SLOT_BLOCK, -1
                    numbers, scales = self._parts(array, kind)
                    state[f"{kind}.{layer}"] = numbers.reshape(blocks).copy()
                    if scales is not None:
                        state[f"{kind}.{layer}.scales"] = scales.reshape(blocks).copy()
        return state

    def load(self, lane: int, state: LaneState) -> None:
        """Put saved arrays into a lane. Raises CacheError if they are not this model's; an error changes nothing."""
        heads, width = self._spec.num_key_value_heads, head_width(self._spec.head_dim)
        rows = {
            kind: ((heads, SLOT_BLOCK * numbers), KV_DTYPES[self._dtype].name)
            for kind, numbers in (("keys", self._spec.head_dim), ("values", width))
        }
        suffixes = {}
        if self._dtype == "q8_0":
            suffixes = {f"{kind}.scales": "scales" for kind in rows}
            rows |= dict.fromkeys(suffixes, ((heads, SLOT_BLOCK * width // 32), "float16"))
        counts = check_lane_state(state, self._spec, rows, axis=1, suffixes=suffixes)
        slots = {
            layer: min(counts[self._spec.group_of(layer)] * SLOT_BLOCK, round_up(ring, SLOT_BLOCK))
            for layer, ring in self._layers.items()
        }
        made = {layer: self._allocated(count) for layer, count in slots.items() if count}
        for layer, arrays in made.items():
            for kind, array in arrays.items():
                parts = self._parts(array, kind)
                for target, name in zip(parts, (f"{kind}.{layer}", f"{kind}.{layer}.scales"), strict=True):
                    if target is not None:
                        target[:] = np.asarray(state[name]).reshape(heads, -1)[:, : target.shape[1]]
        for layer, count in slots.items():  # from here on nothing can fail
            self._slots[self._spec.group_of(layer), lane] = 0
            if layer in made:
                self._put(layer, lane, made[layer], count)
            else:
                for kind in ("keys", "values"):
                    self._arrays.pop((layer, lane, kind), None)
                self.tables[layer][lane] = 0

    def clear(self) -> None:
        """Free all arrays."""
        self._arrays.clear()
        self._slots = dict.fromkeys(self._slots, 0)
        for table in self.tables.values():
            table[:] = 0

    def _resize(self, layer: int, lane: int, slots: int) -> None:
        """Allocate arrays of `slots` slots, a multiple of SLOT_BLOCK, and copy the old contents into them."""
        grown = self._allocated(slots)
        for kind, new in grown.items():
            old = self._arrays.get((layer, lane, kind))
            if old is not None:
                for target, source in zip(self._parts(new, kind), self._parts(old, kind), strict=True):
                    if target is not None and source is not None:
                        target[:, : source.shape[1]] = source
        self._put(layer, lane, grown, slots)

    def _allocated(self, slots: int) -> dict[str, _Arrays]:
        """Zeroed keys and values of a layer in a lane of this many slots. Raises MemoryError."""
        spec = self._spec
        scales = head_width(spec.head_dim) // 32 * 2 if self._dtype == "q8_0" else 0
        return {
            kind: np.zeros((spec.num_key_value_heads, slots * (numbers * self._number + scales)), np.uint8)
            for kind, numbers in (("keys", spec.head_dim), ("values", head_width(spec.head_dim)))
        }

    def _put(self, layer: int, lane: int, arrays: dict[str, _Arrays], slots: int) -> None:
        """Let kernels find these arrays as the lane's."""
        for kind, array in arrays.items():
            self._arrays[layer, lane, kind] = array
        self.tables[layer][lane] = arrays["keys"].ctypes.data, arrays["values"].ctypes.data, slots

    def _parts(self, array: _Arrays, kind: str) -> tuple[NDArray[Any], NDArray[np.float16] | None]:
        """Views of an array: its numbers [heads, N] and, of q8_0, its scales [heads, M], in order of slots."""
        width = head_width(self._spec.head_dim)
        numbers = (self._spec.head_dim if kind == "keys" else width) * self._number
        if self._dtype != "q8_0":
            return array.view(KV_DTYPES[self._dtype]), None
        slots = array.shape[1] // (numbers + width // 32 * 2)
        return array[:, : slots * numbers].view(np.int8), array[:, slots * numbers :].view(np.float16)
