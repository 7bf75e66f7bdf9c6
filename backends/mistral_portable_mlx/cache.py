"""Keys and values of each layer and lane: rings in MLX arrays, written in place and read as they lie.

MLX arrays are values: writing to one makes another. But where nobody else holds the old one, MLX gives its memory to
the new one, so a write costs what is written. Two lanes may share an array (a fork): the first one to write takes a
copy, by itself.
"""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import LaneState
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import CacheError
from mistral_portable_mlx.attention import Format
from mistral_portable_mlx.memory import Memory

__all__ = ["Cache", "Parts", "room"]

Parts = list[mx.array]
"""The arrays of a layer's lane, each [key/value heads, slots, n], in the order of `Format.parts`."""

_STEP = 1024


def room(length: int, capacity: int) -> int:
    """Slots for `length` tokens, at most `capacity`, the plan's: its doublings, and beyond 1024 finer steps.

    A lane is read as a whole, so slots that are not used yet cost time: at most 1024 or, of long lanes, an eighth. 1500
    tokens: 2048; 33,000 tokens, for which a plan says 65,536: 36,864.
    """
    step = max(_STEP, 1 << max(0, length.bit_length() - 4))
    return min(capacity, -(-length // step) * step)


class Cache:
    """The arrays of all lanes. A lane takes memory once it is used, and gives it back when its sequence starts anew."""

    def __init__(self, spec: CacheSpec, format: Format, memory: Memory) -> None:
        self._spec, self._format, self._memory = spec, format, memory
        self._lanes: dict[tuple[int, int], Parts] = {}
        self._shared: set[int] = set()  # lanes whose arrays another one may hold, too

    @property
    def nbytes(self) -> int:
        """Bytes now allocated; what lanes share counts once."""
        arrays = {id(array): array.nbytes for parts in self._lanes.values() for array in parts}
        return sum(arrays.values())

    def take(self, plan: StepPlan) -> dict[int, list[Parts]]:
        """By layer, the arrays of the plan's sequences, with room for them. Raises CacheError if memory is short."""
        ends = plan.positions[plan.query_starts[1:] - 1] + 1
        begins = plan.positions[plan.query_starts[:-1]]
        sequences = list(zip(plan.lanes.tolist(), begins.tolist(), ends.tolist(), strict=True))
        for lane, begin, end in sequences:
            if begin == 0:
                self.drop(lane)
            self._grow(lane, end, [room(end, reads.capacity) for reads in plan.groups])
            if lane in self._shared:  # writing to them makes copies
                others = {id(array) for (_, owner), parts in self._lanes.items() if owner != lane for array in parts}
                mine = [array for (_, owner), parts in self._lanes.items() if owner == lane for array in parts]
                self._memory.require_growth(sum(array.nbytes for array in mine if id(array) in others), end)
                self._shared.discard(lane)
        layers = [layer for group in self._spec.groups for layer in group.layers]
        return {layer: [list(self._lanes[layer, lane]) for lane, _, _ in sequences] for layer in layers}

    def put(self, plan: StepPlan, layers: Mapping[int, list[Parts]]) -> None:
        """Keep what a step has made of `take`."""
        for layer, sequences in layers.items():
            for lane, parts in zip(plan.lanes.tolist(), sequences, strict=True):
                self._lanes[layer, lane] = parts

    def slots(self, group: int, lane: int) -> int:
        """Allocated slots of a lane that was taken."""
        return self._lanes[self._spec.groups[group].layers[0], lane][0].shape[1]

    def arrays(self) -> Parts:
        """All of them."""
        return [array for parts in self._lanes.values() for array in parts]

    def copy(self, source: int, target: int) -> None:
        """Let two lanes have the same arrays, until one of them is written to."""
        self.drop(target)
        for (layer, lane), parts in list(self._lanes.items()):
            if lane == source:
                self._lanes[layer, target] = list(parts)
        self._shared |= {source, target}

    def drop(self, lane: int) -> None:
        """Give a lane's memory back."""
        for key in [key for key in self._lanes if key[1] == lane]:
            del self._lanes[key]

    def clear(self) -> None:
        """Give all memory back."""
        self._lanes.clear()

    def save(self, lane: int) -> LaneState:
        """NumPy copies by `part.layer`; bfloat16 as uint16, its bits."""
        return {
            f"{name}.{layer}": np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
            for (layer, owner), parts in self._lanes.items()
            if owner == lane
            for name, array in zip(self._format.parts, parts, strict=True)
        }

    def load(self, lane: int, state: LaneState) -> None:
        """Put saved arrays into a lane. Raises CacheError, and changes nothing, if they are not this model's."""
        loaded: dict[int, Parts] = {}
        names = {
            f"{part}.{layer}" for group in self._spec.groups for layer in group.layers for part in self._format.parts
        }
        if state and set(state) != names:  # a lane that was saved before its first step is empty
            raise CacheError(f"the saved lane holds {', '.join(sorted(state))}: not the layers of this model")
        for group in self._spec.groups if state else ():
            for layer in group.layers:
                arrays = [np.asarray(state[f"{part}.{layer}"]) for part in self._format.parts]
                loaded[layer] = [
                    self._fitting(f"{part}.{layer}", array, like, arrays[0], group.slots)
                    for part, array, like in zip(
                        self._format.parts, arrays, self._format.empty(self._spec.num_key_value_heads, 0), strict=True
                    )
                ]
            if len({loaded[layer][0].shape[1] for layer in group.layers}) > 1:
                raise CacheError("the saved lane does not fit this model: layers of one window have different lengths")
        size = sum(array.nbytes for parts in loaded.values() for array in parts)
        self._memory.require_growth(size, max((parts[0].shape[1] for parts in loaded.values()), default=0))
        mx.eval(list(loaded.values()))
        self.drop(lane)
        for layer, parts in loaded.items():
            self._lanes[layer, lane] = parts

    def _fitting(self, name: str, array: NDArray[Any], like: mx.array, first: NDArray[Any], slots: int) -> mx.array:
        stored = mx.uint16 if like.dtype == mx.bfloat16 else like.dtype
        known = f"mlx.core.{array.dtype}" == str(stored)
        fits = known and array.ndim == 3 and (array.shape[0], array.shape[2]) == (like.shape[0], like.shape[2])
        if not fits or array.shape[1] != first.shape[1]:
            raise CacheError(f"the saved lane does not fit this model: {name} is {array.dtype} {array.shape}")
        loaded = mx.array(np.ascontiguousarray(array[:, :slots]))
        return loaded.view(like.dtype) if loaded.dtype != like.dtype else loaded

    def _grow(self, lane: int, length: int, slots: list[int]) -> None:
        """Give a lane that many slots in each group; what it holds stays."""
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
        for layer, wanted in missing:  # one layer after the other, so that only one is held twice
            # Zeros: a slot that nothing was written to gets the weight 0, and 0 * NaN would be NaN.
            grown = self._format.empty(heads, wanted)
            for new, old in zip(grown, self._lanes.get((layer, lane), []), strict=False):
                new[:, : old.shape[1]] = old
            self._lanes[layer, lane] = grown
            mx.eval(grown)
