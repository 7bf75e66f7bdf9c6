"""Keys and values of all lanes: of each layer two pools of pages, [pages, page, key/value heads, head_dim]."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mistral_portable.boundary import LaneState
from mistral_portable.boundary.shared import check_lane_state
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable_torch.memory import Memory
from mistral_portable_torch.pages import Pages
from mistral_portable_torch.reads import Reads, group_reads

__all__ = ["PAGE", "Cache"]

PAGE = 256
"""Slots of a page: flash-attn takes multiples of it."""

_KINDS = ("keys", "values")


class Cache:
    """A lane takes pages as its text grows, and gives them back when its sequence starts anew. Pools never shrink.

    A page that is taken is all zeros: a slot that nothing was written to gets the weight 0, and 0 * NaN would be NaN.
    """

    def __init__(
        self, spec: CacheSpec, dtype: torch.dtype, device: torch.device, memory: Memory, page: int = PAGE
    ) -> None:
        self._spec, self._memory, self.page = spec, memory, page
        self._pages = [Pages(group.slots, page) for group in spec.groups]
        empty = torch.zeros(0, page, spec.num_key_value_heads, spec.head_dim, dtype=dtype, device=device)
        layers = [layer for group in spec.groups for layer in group.layers]
        self._pools = {(kind, layer): empty for kind in _KINDS for layer in layers}
        self.growths = 0
        """How often pools have moved to other addresses."""

    @property
    def nbytes(self) -> int:
        """Bytes now allocated."""
        return sum(pool.nbytes for pool in self._pools.values())

    def first_bytes(self, tokens: int) -> int:
        """Bytes of a first lane of `tokens` tokens."""
        return sum(pages.needed(tokens) * self._page_bytes(index) for index, pages in enumerate(self._pages))

    def ring(self, group: int) -> int:
        """Slots after which positions start over in a layer group."""
        return self._pages[group].ring

    def keys(self, layer: int) -> Tensor:
        """[pages, page, heads, head_dim]"""
        return self._pools["keys", layer]

    def values(self, layer: int) -> Tensor:
        """[pages, page, heads, head_dim]"""
        return self._pools["values", layer]

    def take(self, plan: StepPlan) -> list[Reads]:
        """Make room for the plan; return what it reads, by layer group. Raises CapacityError if memory is short."""
        ends = plan.ends.tolist()
        begins = plan.positions[plan.query_starts[:-1]].tolist()
        sequences = list(zip(plan.lanes.tolist(), begins, ends, strict=True))
        for lane, begin, _ in sequences:
            if begin == 0:
                self.drop(lane)
        self._grow([(lane, end) for lane, _, end in sequences])
        return [group_reads(plan, index, group, self._pages[index]) for index, group in enumerate(self._spec.groups)]

    def copy(self, source: int, target: int) -> None:
        """Let a lane have what another one has."""
        if source == target:
            return
        self.drop(target)
        self._grow([(target, self._slots_of(source))])
        for index, group in enumerate(self._spec.groups):
            held = self._pages[index].of(source)
            taken = self._pages[index].of(target)[: len(held)]
            for layer in group.layers:
                for kind in _KINDS:
                    self._pools[kind, layer][taken] = self._pools[kind, layer][held]

    def drop(self, lane: int) -> None:
        """Take a lane's pages back."""
        for pages in self._pages:
            pages.drop(lane)

    def clear(self) -> None:
        """Give all memory back."""
        self._memory.take(-self.nbytes)
        self._pools = {name: pool[:0].clone() for name, pool in self._pools.items()}
        self._pages = [Pages(group.slots, self.page) for group in self._spec.groups]

    def save(self, lane: int) -> LaneState:
        """NumPy copies [pages, page, heads, head_dim] by `kind.layer`; bfloat16 as uint16, its bits."""
        return {
            f"{kind}.{layer}": _to_numpy(self._pools[kind, layer][self._pages[index].of(lane)])
            for index, group in enumerate(self._spec.groups)
            if self._pages[index].of(lane)
            for layer in group.layers
            for kind in _KINDS
        }

    def load(self, lane: int, state: LaneState) -> None:
        """Put saved arrays into a lane. Raises CacheError, and changes nothing, if they are not this model's."""
        counts = self._checked(state)
        self._grow([(lane, max((count * self.page for count in counts), default=0))])
        for index, group in enumerate(self._spec.groups if state else ()):
            pages = self._pages[index].of(lane)
            for name in ((kind, layer) for layer in group.layers for kind in _KINDS):
                array, pool = np.asarray(state["{}.{}".format(*name)]), self._pools[name]
                count = min(len(array), len(pages))
                pool[pages[:count]] = _from_numpy(array[:count], pool)
                pool[pages[count:]] = 0

    def _checked(self, state: LaneState) -> list[int]:
        """Pages of each group; 0 for a lane that was saved before its first step."""
        pool = next(iter(self._pools.values()))
        rows = tuple(pool.shape[1:]), str(_to_numpy(pool[:0]).dtype)
        return check_lane_state(state, self._spec, dict.fromkeys(_KINDS, rows))

    def _slots_of(self, lane: int) -> int:
        return max(len(pages.of(lane)) * pages.page for pages in self._pages)

    def _page_bytes(self, index: int) -> int:
        layer = self._spec.groups[index].layers[0]
        pool = self._pools["keys", layer]
        numbers = self.page * self._spec.num_key_value_heads * self._spec.head_dim
        return 2 * len(self._spec.groups[index].layers) * numbers * pool.itemsize

    def _grow(self, lengths: list[tuple[int, int]]) -> None:
        """Give lanes pages for so many tokens each, in all groups or, if memory is short, in none."""
        counts = [{lane: pages.missing(lane, length) for lane, length in lengths} for pages in self._pages]
        more = [pages.shortage(sum(missing.values())) for pages, missing in zip(self._pages, counts, strict=True)]
        size = sum(count * self._page_bytes(index) for index, count in enumerate(more))
        if size:
            self._memory.require_growth(size, max(length for _, length in lengths))
        for index, group in enumerate(self._spec.groups):
            if more[index]:
                count = self._pages[index].count + more[index]
                self.growths += 1  # first: some pools have moved even if memory runs out at a later one
                for name in ((kind, layer) for layer in group.layers for kind in _KINDS):  # one is held twice at a time
                    old = self._pools[name]
                    if len(old) < count:  # not so where memory ran out at a later layer before
                        self._pools[name] = old.new_zeros(count, *old.shape[1:])
                        self._pools[name][: len(old)] = old
                        self._memory.take(self._pools[name].nbytes - old.nbytes)
        for index, group in enumerate(self._spec.groups):  # no lane takes a page before there is room in all groups
            self._pages[index].add(more[index])
            taken = [page for lane, count in counts[index].items() for page in self._pages[index].take(lane, count)]
            if taken:
                for name in ((kind, layer) for layer in group.layers for kind in _KINDS):
                    self._pools[name][taken] = 0


def _to_numpy(pages: Tensor) -> NDArray[np.generic]:
    found: NDArray[np.generic] = (pages.view(torch.uint16) if pages.dtype == torch.bfloat16 else pages).cpu().numpy()
    return found


def _from_numpy(array: NDArray[np.generic], like: Tensor) -> Tensor:
    pages = torch.from_numpy(array.copy())
    return (pages.view(like.dtype) if pages.dtype != like.dtype else pages).to(like.device)
