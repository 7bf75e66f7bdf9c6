"""Cache: a pool of pages for each layer, in JAX arrays; how it grows, copies, saves, and what a failure has lost."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import LaneState
from mistral_portable.boundary.shared import check_pages
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import CapacityError
from mistral_portable_jax.failures import translated
from mistral_portable_jax.inputs import few, padded
from mistral_portable_jax.step import NOWHERE, Arrays

__all__ = ["Cache"]

_LEAST = 4  # pages of a pool that has any: each size of a pool is compiled


class Cache:
    """`arrays`: keys.L and values.L of each layer L, [pages, page_size, key/value heads, head_dim].

    A step takes them and gives others back (`keep`); if it fails after it took them, they are lost (`lose`), and pages
    that held something raise CapacityError until they are written anew.
    """

    def __init__(self, spec: CacheSpec, dtype: str) -> None:
        self._spec, self._dtype = spec, jnp.dtype(dtype)
        self._lost: set[tuple[int, int]] = set()  # layer group and page
        self.arrays = self._empty()

    @property
    def nbytes(self) -> int:
        """Bytes now allocated."""
        return sum(array.nbytes for array in self.arrays.values())

    def make_room(self, plan: StepPlan) -> None:
        """Grow to the plan's pages, then make its copies.

        Raises CapacityError if memory is short, or if a page that the plan reads was lost.
        """
        self._require_held(plan)
        for group, reads in enumerate(plan.groups):
            self._grow(group, reads.page_count)
        for group, reads in enumerate(plan.groups):
            if len(reads.copies):
                source = padded(reads.copies[:, 0], few(len(reads.copies)))
                rows = ((name, self.arrays[name][source]) for name in self._names(group))
                self._set(reads.copies[:, 1], rows)

    def keep(self, plan: StepPlan, arrays: Arrays) -> None:
        """Hold what a step has made of `arrays`."""
        self.arrays = arrays
        if not self._lost:
            return
        for group, (own, reads) in enumerate(zip(self._spec.groups, plan.groups, strict=True)):
            written = (*(reads.slot_mapping // own.page_size).tolist(), *reads.copies[:, 1].tolist())
            self._lost -= {(group, page) for page in written}

    def lose(self) -> None:
        """Start empty pools: a step took the arrays and failed."""
        for group in range(len(self._spec.groups)):
            self._lost |= {(group, page) for name in self._names(group) for page in range(len(self.arrays[name]))}
        self.arrays = self._empty()

    def read(self, group: int, pages: Sequence[int], blank: Sequence[int]) -> LaneState:
        """NumPy copies by name, [pages, page_size, key/value heads, head_dim]; bfloat16 as uint16, its bits. The slots
        `blank` of the last page are zeros."""
        for page in pages:
            if (group, page) in self._lost:
                raise _lost(f"page {page}")
        index = padded(np.array(pages, np.int32), few(len(pages)))
        found = {name: np.asarray(self.arrays[name][index])[: len(pages)].copy() for name in self._names(group)}
        for rows in found.values():
            rows[-1:, list(blank)] = 0
        return {name: rows.view(np.uint16) if rows.dtype == jnp.bfloat16 else rows for name, rows in found.items()}

    def write(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        """Put arrays from `read` into pages. Raises CacheError if they do not fit, CapacityError if memory is short."""
        spec = self._spec
        shape = spec.groups[group].page_size, spec.num_key_value_heads, spec.head_dim
        page = shape, "uint16" if self._dtype == jnp.bfloat16 else str(self._dtype)
        check_pages(state, spec, group, len(pages), {"keys": page, "values": page})
        self._grow(group, max(pages, default=-1) + 1)
        size = few(len(pages))
        rows = ((name, padded(array.view(self._dtype), size, dtype=self._dtype)) for name, array in state.items())
        self._set(np.array(pages, np.int32), rows)
        self._lost -= {(group, page) for page in pages}

    def slot_bytes(self, group: int) -> int:
        """Bytes of a slot in all layers of a group."""
        return self._spec.slot_bytes(group, self._dtype.itemsize)

    def _names(self, group: int) -> list[str]:
        return [f"{kind}.{layer}" for layer in self._spec.groups[group].layers for kind in ("keys", "values")]

    def _empty(self) -> Arrays:
        """Pools of no pages."""
        heads = self._spec.num_key_value_heads, self._spec.head_dim
        return {
            name: jnp.asarray(np.zeros((0, own.page_size, *heads), self._dtype))
            for group, own in enumerate(self._spec.groups)
            for name in self._names(group)
        }

    def _grow(self, group: int, count: int) -> None:
        """Have `count` pages at least, in doublings; but not more than all lanes need, if that is enough."""
        most, pages = self._spec.max_lanes * self._spec.lane_pages(group), max(_LEAST, few(count))
        if count <= most:
            pages = min(pages, most)
        try:
            for name in self._names(group):
                pool = self.arrays[name]
                if len(pool) < count:  # growth that failed halfway has left some larger
                    more = [(0, pages - len(pool)), *[(0, 0)] * 3]
                    self.arrays[name] = jax.block_until_ready(jnp.pad(pool, more))
        except jax.errors.JaxRuntimeError as error:
            subject = f"a cache of {pages * self._spec.groups[group].page_size} positions"
            raise translated(error, subject, "use fewer sequences or a shorter text") from error

    def _set(self, pages: NDArray[np.int32], rows: Iterable[tuple[str, Any]]) -> None:
        """Put rows, padded to few(len(pages)), into the pools of these names, one after the other."""
        target = padded(pages, few(len(pages)), NOWHERE)
        try:
            for name, some in rows:
                self.arrays[name] = jax.block_until_ready(self.arrays[name].at[target].set(some, mode="drop"))
        except jax.errors.JaxRuntimeError as error:
            raise translated(error, f"a copy of {len(pages)} pages", "use fewer sequences") from error

    def _require_held(self, plan: StepPlan) -> None:
        """Raise CapacityError if a page that was lost holds a position that a sequence has from earlier steps."""
        if not self._lost:
            return
        begins = plan.positions[plan.query_starts[:-1]]
        for group, (own, reads) in enumerate(zip(self._spec.groups, plan.groups, strict=True)):
            sources = {target: source for source, target in reads.copies.tolist()}
            for lane, begin, first, pages in zip(plan.lanes, begins, reads.first, reads.pages.tolist(), strict=True):
                count = -(-begin // own.page_size) - first // own.page_size if first < begin else 0
                if any((group, sources.get(page, page)) in self._lost for page in pages[:count]):
                    raise _lost(f"lane {lane}")


def _lost(subject: str) -> CapacityError:
    return CapacityError(
        f"{subject}: its keys and values were lost when a step failed: "
        "run the sequence again from its first token, in shorter chunks or beside fewer sequences"
    )
