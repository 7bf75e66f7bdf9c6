"""Cache: keys and values of each layer and lane, rings in MLX arrays that are written in place.

MLX arrays are values: a write makes a new array. If nothing else refers to the old one, the new one takes over its
memory, and the write costs only the rows written. Two lanes may share arrays (a fork): then MLX copies them at the
first write.
"""

from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from mistral_portable.boundary import LaneState
from mistral_portable.boundary.shared import check_lane_state
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable_mlx.attention import Format
from mistral_portable_mlx.memory import Memory

__all__ = ["Cache", "Parts", "room"]

Parts = list[mx.array]
"""The arrays of a layer's lane, each [key/value heads, slots, n], in the order of `Format.parts`."""

_STEP = 1024


def room(length: int, capacity: int) -> int:
    """Slots to allocate for `length` tokens, at most `capacity`, the plan's: finer than its doublings beyond 1024.

    Attention reads all slots of a lane, so unused ones cost time: at most 1024 or, in long lanes, an eighth. Examples:
    1500 tokens get 2048; 33,000 tokens, for which a plan says 65,536, get 36,864.
    """
    step = max(_STEP, 1 << max(0, length.bit_length() - 4))
    return min(capacity, -(-length // step) * step)


class Cache:
    """The arrays of all lanes. Memory is taken as a lane grows, and given back when its next sequence begins."""

    def __init__(self, spec: CacheSpec, format: Format, memory: Memory) -> None:
        self._spec, self._format, self._memory = spec, format, memory
        self._lanes: dict[tuple[int, int], Parts] = {}
        self._shared: set[int] = set()  # lanes whose arrays another lane may hold

    @property
    def nbytes(self) -> int:
        """Bytes now allocated; shared arrays count once."""
        arrays = {id(array): array.nbytes for parts in self._lanes.values() for array in parts}
        return sum(arrays.values())

    def take(self, plan: StepPlan) -> dict[int, list[Parts]]:
        """The arrays of the plan's sequences, by layer, with room for its tokens.

        Raises CapacityError if memory is short.
        """
        begins = plan.positions[plan.query_starts[:-1]]
        sequences = list(zip(plan.lanes.tolist(), begins.tolist(), plan.ends.tolist(), strict=True))
        for lane, begin, end in sequences:
            if begin == 0:
                self.drop(lane)
            self._grow(lane, end, [room(end, reads.capacity) for reads in plan.groups])
            if lane in self._shared:  # the write will copy what is still shared
                others = {id(array) for (_, owner), parts in self._lanes.items() if owner != lane for array in parts}
                mine = [array for (_, owner), parts in self._lanes.items() if owner == lane for array in parts]
                self._memory.require_growth(sum(array.nbytes for array in mine if id(array) in others), end)
                self._shared.discard(lane)
        layers = [layer for group in self._spec.groups for layer in group.layers]
        return {layer: [list(self._lanes[layer, lane]) for lane, _, _ in sequences] for layer in layers}

    def put(self, plan: StepPlan, layers: Mapping[int, list[Parts]]) -> None:
        """Keep the arrays that a step has made of those from `take`."""
        for layer, sequences in layers.items():
            for lane, parts in zip(plan.lanes.tolist(), sequences, strict=True):
                self._lanes[layer, lane] = parts

    def slots(self, group: int, lane: int) -> int:
        """Allocated slots of a lane in a layer group; the lane must have been taken."""
        return self._lanes[self._spec.groups[group].layers[0], lane][0].shape[1]

    def arrays(self) -> Parts:
        """The arrays of all lanes and layers."""
        return [array for parts in self._lanes.values() for array in parts]

    def copy(self, source: int, target: int) -> None:
        """Share the arrays of `source` with `target`; the next write to either copies."""
        self.drop(target)
        for (layer, lane), parts in list(self._lanes.items()):
            if lane == source:
                self._lanes[layer, target] = list(parts)
        self._shared |= {source, target}

    def drop(self, lane: int) -> None:
        """Release a lane's memory."""
        for key in [key for key in self._lanes if key[1] == lane]:
            del self._lanes[key]

    def clear(self) -> None:
        """Release all memory."""
        self._lanes.clear()

    def save(self, lane: int) -> LaneState:
        """NumPy copies named KIND.LAYER, scales KIND.LAYER.scales; bfloat16 as uint16, its bits."""
        return {
            self._name(part, layer): np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
            for (layer, owner), parts in self._lanes.items()
            if owner == lane
            for part, array in zip(self._format.parts, parts, strict=True)
        }

    def load(self, lane: int, state: LaneState) -> None:
        """Put saved arrays into a lane.

        Raises CacheError if they are not this model's, CapacityError if they do not fit; the lane is then unchanged.
        """
        heads, parts = self._spec.num_key_value_heads, self._format.parts
        like = dict(zip(parts, self._format.empty(heads, 0), strict=True))
        rows = {part: ((heads, array.shape[2]), _numpy_name(array.dtype)) for part, array in like.items()}
        suffixes = {part: part.partition(".")[2] for part in parts if "." in part}
        counts = check_lane_state(state, self._spec, rows, axis=1, suffixes=suffixes)
        slots = [min(count, group.slots) for count, group in zip(counts, self._spec.groups, strict=True)]
        sizes = [self._format.nbytes(heads, count) for count in slots]
        size = sum(size * len(group.layers) for size, group in zip(sizes, self._spec.groups, strict=True))
        self._memory.require_growth(size, max(slots))
        loaded: dict[int, Parts] = {}
        for group, count in zip(self._spec.groups, slots, strict=True):
            for layer in group.layers if state else ():
                arrays = [mx.array(np.ascontiguousarray(state[self._name(part, layer)][:, :count])) for part in parts]
                loaded[layer] = [array.view(like[part].dtype) for part, array in zip(parts, arrays, strict=True)]
        mx.eval(list(loaded.values()))
        self.drop(lane)
        for layer, arrays in loaded.items():
            self._lanes[layer, lane] = arrays

    def _name(self, part: str, layer: int) -> str:
        kind, *suffix = part.split(".")
        return ".".join([kind, str(layer), *suffix])

    def _grow(self, lane: int, length: int, slots: list[int]) -> None:
        """Give a lane so many slots in each group, keeping its content. Raises CapacityError if memory is short."""
        spec = self._spec
        missing = [
            (layer, wanted)
            for group, wanted in zip(spec.groups, slots, strict=True)
            for layer in group.layers
            if (layer, lane) not in self._lanes or self._lanes[layer, lane][0].shape[1] < wanted
        ]
        if not missing:
            return
        heads = spec.num_key_value_heads
        more = sum(self._format.nbytes(heads, wanted) for _, wanted in missing)
        held = sum(array.nbytes for layer, _ in missing for array in self._lanes.get((layer, lane), []))
        self._memory.require_growth(more - held, length)
        for layer, wanted in missing:  # one layer after the other, so that only one is in memory twice
            # Zeros: an empty slot gets the weight 0, and 0 * NaN would be NaN.
            grown = self._format.empty(heads, wanted)
            for new, old in zip(grown, self._lanes.get((layer, lane), []), strict=False):
                new[:, : old.shape[1]] = old
            self._lanes[layer, lane] = grown
            mx.eval(grown)


def _numpy_name(dtype: mx.Dtype) -> str:
    """The dtype in saved lanes, as NumPy names it; it has no bfloat16."""
    return "uint16" if dtype == mx.bfloat16 else str(dtype).removeprefix("mlx.core.")
