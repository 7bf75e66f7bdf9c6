"""Cache: keys and values of each layer and page, a page being a whole lane, in MLX arrays that are written in place.

MLX arrays are values: a write makes a new array. If nothing else refers to the old one, the new one takes over its
memory, and the write costs only the rows written. Else, as where a page is a copy of another, MLX copies it first.
"""

from collections.abc import Iterator, Mapping, Sequence

import mlx.core as mx
import numpy as np

from mistral_portable.boundary import LaneState
from mistral_portable.boundary.shared import check_pages
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable_mlx.attention import Format
from mistral_portable_mlx.memory import Memory

__all__ = ["Cache", "Parts", "room"]

Parts = list[mx.array]
"""The arrays of a layer's page, each [key/value heads, slots, n], in the order of `Format.parts`."""

_LEAST, _STEP = 256, 1024


def room(length: int, page_size: int) -> int:
    """Slots to allocate for `length` tokens, at most `page_size`: doublings from 256 to 1024, then finer steps.

    Attention reads all slots of a page, so unused ones cost time: at most 1024 or, in long lanes, an eighth. Examples:
    300 tokens get 512, 1500 get 2048, and 33,000 get 36,864.
    """
    if length <= _STEP:
        return min(page_size, max(_LEAST, 1 << (length - 1).bit_length()))
    step = max(_STEP, 1 << (length.bit_length() - 4))
    return min(page_size, -(-length // step) * step)


class Cache:
    """The arrays of all pages. Memory is taken as a page fills, and given back when another sequence begins in it."""

    def __init__(self, spec: CacheSpec, format: Format, memory: Memory) -> None:
        self._spec, self._format, self._memory = spec, format, memory
        self._pages: dict[tuple[int, int], Parts] = {}  # by layer and page

    @property
    def nbytes(self) -> int:
        """Bytes now allocated; shared arrays count once."""
        arrays = {id(array): array.nbytes for parts in self._pages.values() for array in parts}
        return sum(arrays.values())

    def slot_bytes(self, group: int) -> int:
        """Bytes of a slot in all layers of a group."""
        return len(self._spec.groups[group].layers) * self._format.nbytes(self._spec.num_key_value_heads, 1)

    def take(self, plan: StepPlan) -> dict[int, list[Parts]]:
        """The arrays of the plan's sequences, by layer, with room for its tokens; those of a copy may be its source's.

        Raises CapacityError if memory is short; only pages that the plan begins or copies to have changed then.
        """
        self._begin(plan)
        longest = int(plan.ends.max())
        self._memory.require_growth(sum(self._growth(*wanted) for wanted in self._wanted(plan)), longest)
        layers: dict[int, list[Parts]] = {layer: [] for group in self._spec.groups for layer in group.layers}
        for layer, page, source, slots in self._wanted(plan):
            parts = self._pages.get((layer, source), [])
            if self._slots(layer, source) < slots:
                parts = self._pages[layer, page] = self._grown(parts, slots)
            layers[layer].append(list(parts))
        return layers

    def put(self, plan: StepPlan, layers: Mapping[int, list[Parts]]) -> None:
        """Keep the arrays that a step has made of those from `take`."""
        for group, reads in zip(self._spec.groups, plan.groups, strict=True):
            for layer in group.layers:
                for page, parts in zip(reads.pages[:, 0].tolist(), layers[layer], strict=True):
                    self._pages[layer, page] = parts

    def arrays(self) -> Parts:
        """The arrays of all pages and layers."""
        return [array for parts in self._pages.values() for array in parts]

    def clear(self) -> None:
        """Release all memory."""
        self._pages.clear()

    def read(self, group: int, pages: Sequence[int], blank: Sequence[int]) -> LaneState:
        """NumPy copies named KIND.LAYER, scales KIND.LAYER.scales, each [pages, heads, slots, n]; bfloat16 as uint16.

        They have as many slots as the longest of the pages; the others end in zeros. So does the last page have in its
        slots `blank`.
        """
        layers, empty = self._spec.groups[group].layers, self._empty_parts()
        slots = max((self._slots(layers[0], page) for page in pages), default=0)
        state = {}
        for layer in layers:
            for at, (part, like) in enumerate(empty.items()):
                out = np.zeros((len(pages), len(like), slots, like.shape[2]), _numpy_name(like.dtype))
                for row, page in zip(out, pages, strict=True):
                    array = self._pages[layer, page][at] if (layer, page) in self._pages else like
                    row[:, : array.shape[1]] = np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
                out[-1:, :, [slot for slot in blank if slot < slots]] = 0
                state[self._name(part, layer)] = out
        return state

    def write(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        """Put arrays from `read` into pages.

        Raises CacheError if they are not this model's, CapacityError if they do not fit; nothing has changed then.
        """
        own, heads = self._spec.groups[group], self._spec.num_key_value_heads
        like = self._empty_parts()
        saved = state.get(self._name(self._format.parts[0], own.layers[0]))
        slots = min(saved.shape[2], own.page_size) if saved is not None and saved.ndim == 4 else 0
        rows = {part: ((heads, slots, array.shape[2]), _numpy_name(array.dtype)) for part, array in like.items()}
        suffixes = {part: part.partition(".")[2] for part in like if "." in part}
        check_pages(state, self._spec, group, len(pages), rows, suffixes)
        self._memory.require_growth(len(pages) * len(own.layers) * self._format.nbytes(heads, slots), slots)
        loaded = {
            (layer, page): [
                mx.array(np.ascontiguousarray(state[self._name(part, layer)][row])).view(array.dtype)
                for part, array in like.items()
            ]
            for layer in own.layers
            for row, page in enumerate(pages)
        }
        mx.eval(list(loaded.values()))
        self._pages |= loaded

    def _begin(self, plan: StepPlan) -> None:
        """Release the old arrays of pages in which a sequence begins, and of those that become copies."""
        begun = plan.positions[plan.query_starts[:-1]] == 0
        for group, reads in zip(self._spec.groups, plan.groups, strict=True):
            for page in (*reads.pages[begun, 0].tolist(), *reads.copies[:, 1].tolist()):
                for layer in group.layers:
                    self._pages.pop((layer, page), None)

    def _wanted(self, plan: StepPlan) -> Iterator[tuple[int, int, int, int]]:
        """For each layer and sequence: the layer, the page, the page whose content it begins with, and its slots."""
        ends = plan.ends.tolist()
        for group, reads in zip(self._spec.groups, plan.groups, strict=True):
            sources = {target: source for source, target in reads.copies.tolist()}
            pages = reads.pages[:, 0].tolist()
            for layer in group.layers:
                for page, end in zip(pages, ends, strict=True):
                    yield layer, page, sources.get(page, page), room(end, group.page_size)

    def _growth(self, layer: int, page: int, source: int, slots: int) -> int:
        """Bytes that a page needs beyond those it has; a copy has none: the first write to it copies its source."""
        heads, held = self._spec.num_key_value_heads, self._slots(layer, source)
        needed = self._format.nbytes(heads, max(held, slots))
        return needed if page != source else needed - self._format.nbytes(heads, held)

    def _slots(self, layer: int, page: int) -> int:
        """Allocated slots of a page."""
        parts = self._pages.get((layer, page))
        return parts[0].shape[1] if parts else 0

    def _grown(self, parts: Parts, slots: int) -> Parts:
        """Copies with more slots. Evaluated, so that only one layer's page is in memory twice."""
        # Zeros: an empty slot gets the weight 0, and 0 * NaN would be NaN.
        grown = self._format.empty(self._spec.num_key_value_heads, slots)
        for new, old in zip(grown, parts, strict=False):
            new[:, : old.shape[1]] = old
        mx.eval(grown)
        return grown

    def _empty_parts(self) -> dict[str, mx.array]:
        """Arrays without slots, by the names of the parts."""
        return dict(zip(self._format.parts, self._format.empty(self._spec.num_key_value_heads, 0), strict=True))

    def _name(self, part: str, layer: int) -> str:
        kind, *suffix = part.split(".")
        return ".".join([kind, str(layer), *suffix])


def _numpy_name(dtype: mx.Dtype) -> str:
    """The dtype in saved pages, as NumPy names it; it has no bfloat16."""
    return "uint16" if dtype == mx.bfloat16 else str(dtype).removeprefix("mlx.core.")
