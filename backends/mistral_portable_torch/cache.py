"""The cache of keys and values: two pools of pages per layer, [pages, page_size, key/value heads, head_dim]."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mistral_portable.boundary import LaneState
from mistral_portable.boundary.shared import check_pages
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable_torch.memory import Memory
from mistral_portable_torch.reads import Integers

__all__ = ["Cache"]

_KINDS = ("keys", "values")
_STRIDE = 4  # pages by which a small pool grows


class Cache:
    """The pools of all layers. They grow to the number of pages that a plan needs, and never shrink.

    Masking kernels read whole pages and give hidden keys the weight 0, but 0 * NaN is NaN. The slots after a sequence's
    last token may hold NaN of the page's previous owner or of tokens that were rolled back. So a step zeroes the slots
    after the last one that it writes in a page, if they were ever written to; in most steps they were not.

    Example: pages of 4 slots. A sequence of 4 tokens fills page 0 and ends. Another one gets page 0 and writes its
    first token to slot 0, so slots 1, 2 and 3 are zeroed. Its second token goes to slot 1, and nothing is zeroed.
    """

    def __init__(
        self, spec: CacheSpec, dtype: torch.dtype, device: torch.device, memory: Memory, *, recorded: bool = False
    ) -> None:
        """recorded: whether steps are recorded with the pools' addresses, so that to move them is dear: pools then have
        room for a whole lane from the first step on, and double, where at least as much memory stays free."""
        self._recorded = recorded
        self._spec, self._memory, self._device = spec, memory, device
        self._pools = {
            (kind, layer): torch.zeros(
                0, group.page_size, spec.num_key_value_heads, spec.head_dim, dtype=dtype, device=device
            )
            for group in spec.groups
            for layer in group.layers
            for kind in _KINDS
        }
        # Per page, the number of leading slots that may have been written to.
        self._written: list[Integers] = [np.zeros(0, np.int32) for _ in spec.groups]
        self.growths = 0
        """Number of times that pools have moved to other addresses."""

    @property
    def nbytes(self) -> int:
        """Bytes now allocated."""
        return sum(pool.nbytes for pool in self._pools.values())

    def slot_bytes(self, group: int) -> int:
        """Bytes of a slot in all layers of a group."""
        return self._spec.slot_bytes(group, next(iter(self._pools.values())).itemsize)

    def keys(self, layer: int) -> Tensor:
        """[pages, page_size, heads, head_dim]"""
        return self._pools["keys", layer]

    def values(self, layer: int) -> Tensor:
        """[pages, page_size, heads, head_dim]"""
        return self._pools["values", layer]

    def missing_bytes(self, plan: StepPlan) -> int:
        """Bytes of the pages that the plan needs and pools do not have yet."""
        return self._missing_bytes([reads.page_count for reads in plan.groups])

    def make_room(self, plan: StepPlan, scratch: int = 0) -> None:
        """Grow to the plan's pages, make its page copies, and zero stale slots after those that it writes.

        scratch: bytes of memory that stay free. Raises CapacityError if memory is short; nothing has changed then.
        """
        self._grow([reads.page_count for reads in plan.groups], scratch)
        for index, reads in enumerate(plan.groups):
            if len(reads.copies):
                source, target = reads.copies.T
                targets, sources, written = self._indices(target), self._indices(source), self._written[index]
                written[target] = self._spec.groups[index].page_size  # in case memory runs out between two copies
                for _, pool in self._group_pools(index):
                    pool[targets] = pool[sources]
                written[target] = written[source]
            self._zero_after(index, reads.slot_mapping)

    def read(self, group: int, pages: Sequence[int], blank: Sequence[int]) -> LaneState:
        """Copies of pages by `kind.layer`: arrays [pages, page_size, heads, head_dim], bfloat16 as uint16 bits.
        The slots `blank` of the last page are zeros."""
        chosen = self._indices(pages)
        state = {name: _to_numpy(pool[chosen]) for name, pool in self._group_pools(group)}
        for array in state.values():
            array[-1:, list(blank)] = 0
        return state

    def write(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        """Write arrays of `read` to pages. Raises CacheError if they are not this model's, CapacityError if memory is
        short; nothing has changed then."""
        _, pool = self._group_pools(group)[0]
        row = tuple(pool.shape[1:]), str(_to_numpy(pool[:0]).dtype)
        check_pages(state, self._spec, group, len(pages), dict.fromkeys(_KINDS, row))
        self._grow([max(pages, default=-1) + 1 if index == group else 0 for index in range(len(self._written))])
        chosen = self._indices(pages)
        self._written[group][list(pages)] = self._spec.groups[group].page_size
        for name, pool in self._group_pools(group):
            pool[chosen] = _from_numpy(np.asarray(state[name]), pool)

    def clear(self) -> None:
        """Free all memory."""
        self._memory.take(-self.nbytes)
        self._pools = {name: pool[:0].clone() for name, pool in self._pools.items()}
        self._written = [written[:0] for written in self._written]

    def _group_pools(self, index: int) -> list[tuple[str, Tensor]]:
        """The pools of a layer group with their names in a LaneState."""
        layers = self._spec.groups[index].layers
        return [(f"{kind}.{layer}", self._pools[kind, layer]) for layer in layers for kind in _KINDS]

    def _zero_after(self, index: int, slots: Integers) -> None:
        """Zero the slots after the last one of `slots` in each page, where something was written before."""
        size, written = self._spec.groups[index].page_size, self._written[index]
        pages, offsets = np.divmod(slots, np.int32(size))
        ends = written.copy()
        ends[pages] = offsets + 1  # a page's slots ascend, so the last assignment stays
        behind = np.flatnonzero(ends < written)
        if len(behind):
            stale = self._indices([page * size + slot for page in behind for slot in range(ends[page], written[page])])
            for _, pool in self._group_pools(index):
                pool.flatten(0, 1)[stale] = 0
        self._written[index] = ends

    def _grow(self, wanted: Sequence[int], scratch: int = 0) -> None:
        """Grow all groups' pools to at least `wanted` pages, or none. Raises CapacityError if memory is short."""
        held = [len(written) for written in self._written]
        exact = [max(pair) for pair in zip(held, wanted, strict=True)]
        if exact == held:
            return
        counts = self._chosen_counts(held, exact, self._memory.free - scratch)
        self._memory.require_growth(self._missing_bytes(counts))
        for index, count in enumerate(counts):
            if count == held[index]:
                continue
            self.growths += 1  # before they grow: some have moved even if memory then runs out
            for kind, layer in ((kind, layer) for layer in self._spec.groups[index].layers for kind in _KINDS):
                old = self._pools[kind, layer]  # only one pool at a time is held twice
                if len(old) < count:  # it has grown already if memory ran out at a later layer before
                    self._pools[kind, layer] = old.new_zeros(count, *old.shape[1:])
                    self._pools[kind, layer][: len(old)] = old
                    self._memory.take(self._pools[kind, layer].nbytes - old.nbytes)
        for index, count in enumerate(counts):  # last: no group counts more pages before all have room
            self._written[index] = np.pad(self._written[index], (0, count - held[index]))

    def _chosen_counts(self, held: Sequence[int], exact: Sequence[int], free: int) -> Sequence[int]:
        """Pages to allocate in each group, `exact` or more: by the most generous rule that `free` bytes allow."""
        if self._recorded:
            generous = [
                self._capped(index, count, max(count, 2 * held[index], self._spec.lane_pages(index)))
                if grows
                else count
                for index, (count, grows) in enumerate(zip(exact, self._growing(held, exact), strict=True))
            ]
            if 2 * self._missing_bytes(generous) <= free:
                return generous
        rounded = [
            self._rounded(index, count) if grows else count
            for index, (count, grows) in enumerate(zip(exact, self._growing(held, exact), strict=True))
        ]
        return rounded if self._missing_bytes(rounded) <= free else exact

    @staticmethod
    def _growing(held: Sequence[int], exact: Sequence[int]) -> list[bool]:
        return [count > own for own, count in zip(held, exact, strict=True)]

    def _rounded(self, index: int, count: int) -> int:
        """Pages to allocate for a pool that needs `count`, so that it grows rarely: a multiple of 4, or of an eighth to
        a quarter of `count` if that is more."""
        stride = max(_STRIDE, 1 << max(0, count.bit_length() - 3))
        return self._capped(index, count, -(-count // stride) * stride)

    def _capped(self, index: int, count: int, wanted: int) -> int:
        """`wanted` pages, but not more than all lanes can hold, if the needed `count` are not more either."""
        most = self._spec.max_lanes * (self._spec.lane_pages(index) + 1)  # + 1: a page that is being copied
        return min(most, wanted) if count <= most else wanted

    def _missing_bytes(self, counts: Sequence[int]) -> int:
        """Bytes by which pools must grow to have `counts` pages in each group."""
        return sum(
            max(0, count - len(self.keys(layer))) * self._page_bytes(index) // len(group.layers)
            for index, (group, count) in enumerate(zip(self._spec.groups, counts, strict=True))
            for layer in group.layers
        )

    def _page_bytes(self, index: int) -> int:
        return self._spec.groups[index].page_size * self.slot_bytes(index)

    def _indices(self, numbers: Sequence[int] | Integers) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)


def _to_numpy(pages: Tensor) -> NDArray[np.generic]:
    found: NDArray[np.generic] = (pages.view(torch.uint16) if pages.dtype == torch.bfloat16 else pages).cpu().numpy()
    return found


def _from_numpy(array: NDArray[np.generic], like: Tensor) -> Tensor:
    pages = torch.from_numpy(array.copy())
    return (pages.view(like.dtype) if pages.dtype != like.dtype else pages).to(like.device)
