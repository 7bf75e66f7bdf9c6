"""A wrong cache: pages that are misread, mixed up, not copied, not emptied or not taken back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from conformance.making import (
    Array,
    Make,
    of_class,
    wrong_attributes,
    wrong_reads,
)

from mistral_portable.boundary import LaneState
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.cache import LayerGroup, Reads, StepPlan
from mistral_portable.graph import Node
from mistral_portable.reference.program import ReferenceProgram

__all__ = ["WRONG_PAGES", "short_ring"]


def _next_slot(reads: Reads, group: LayerGroup, plan: StepPlan) -> dict[str, Any]:
    return {"slot_mapping": (reads.slot_mapping + 1) % (reads.page_count * group.page_size)}


def _pages_of_the_first(reads: Reads, group: LayerGroup, plan: StepPlan) -> dict[str, Any]:
    return {"pages": np.repeat(reads.pages[:1], len(reads.pages), axis=0)}


def _pages_by_lane(reads: Reads, group: LayerGroup, plan: StepPlan) -> dict[str, Any]:
    return {"pages": reads.pages[np.argsort(plan.lanes)]}


def _pages_from_0(reads: Reads, group: LayerGroup, plan: StepPlan) -> dict[str, Any]:
    """Column p // page_size for position p, also where the first page that is read is not the text's first."""
    columns = reads.first[:, None] // group.page_size + np.arange(reads.pages.shape[1])
    return {"pages": np.take_along_axis(reads.pages, np.minimum(columns, reads.pages.shape[1] - 1), axis=1)}


def _late_pages_reversed(reads: Reads, group: LayerGroup, plan: StepPlan) -> dict[str, Any]:
    return {"pages": np.concatenate([reads.pages[:, :3], reads.pages[:, :2:-1]], axis=1)}


def _short_ring(reads: Reads, group: LayerGroup, plan: StepPlan) -> dict[str, Any]:
    """One slot too few: the last token of a full chunk overwrites a key that its first token still sees."""
    pages = reads.slot_mapping // group.page_size
    return {"slot_mapping": pages * group.page_size + plan.positions % max(1, group.page_size - 1)}


class _NoRollback(ReferenceProgram):
    """Counts the tokens of a lane itself, so that what was taken back counts."""

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
        self._counts: dict[int, int] = getattr(self, "_counts", {})
        self._counted = plan.positions.copy()
        for tokens, lane in zip(plan.spans, plan.lanes.tolist(), strict=True):
            self._counted[tokens] += max(0, self._counts.get(lane, 0) - int(plan.positions[tokens][0]))
            self._counts[lane] = int(self._counted[tokens][-1]) + 1
        return super().step(plan, inputs)

    def _run(self, node: Node, inputs: list[Any], plan: StepPlan) -> Array:
        return super()._run(node, [inputs[0], self._counted] if node.op == "rope" else inputs, plan)


class _NoGrowth(ReferenceProgram):
    """A pool that grows starts empty (zeros, so that it is not noticed as NaN)."""

    def _grow(self, group: int, count: int) -> None:
        own = self._cache_spec.groups[group]
        for store in (self._keys, self._values):
            for layer in own.layers:
                if len(store[layer]) < count * own.page_size:
                    store[layer] = np.zeros((count * own.page_size, *store[layer].shape[1:]), store[layer].dtype)


class _SharedPages(ReferenceProgram):
    """Returns the arrays themselves, which the pages' next sequence overwrites, where they lie side by side."""

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        begin = min(pages, default=0)
        if list(pages) != list(range(begin, begin + len(pages))):
            return super().read_pages(group, pages, blank)
        state = {name: self._by_page(pool, group)[begin : begin + len(pages)] for name, pool in self._pools(group)}
        for array in state.values():
            array[-1:, list(blank)] = 0
        return state


class _NothingBlank(ReferenceProgram):
    """Returns pages as they are, with what an earlier sequence left in them."""

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        return super().read_pages(group, pages)


class _AllPagesBlank(ReferenceProgram):
    """Empties the slots in each of the pages."""

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        state = super().read_pages(group, pages)
        for array in state.values():
            array[:, list(blank)] = 0
        return state


class _BlankFromTheEnd(ReferenceProgram):
    """Counts the slots that are to be blank from the page's end."""

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        last = self._cache_spec.groups[group].page_size - 1
        return super().read_pages(group, pages, [last - slot for slot in blank])


class _SortedPages(ReferenceProgram):
    """Takes pages in ascending order, whatever order they are given in."""

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        super().write_pages(group, sorted(pages), state)


short_ring = wrong_reads(_short_ring)
"""Makes programs whose rings are one slot too short."""

WRONG_PAGES: dict[str, tuple[str, Make]] = {
    "slot off by one": ("one_shot", wrong_reads(_next_slot)),
    "pages counted from the text's first": ("pages", wrong_reads(_pages_from_0)),
    "grown pools start empty": ("chunked", of_class(_NoGrowth)),
    "layers share a cache": ("token_by_token", wrong_attributes("attention", lambda attributes: {"layer": 0})),
    "all sequences read the first one's pages": ("ragged", wrong_reads(_pages_of_the_first)),
    "pages in order of the lanes": ("ragged", wrong_reads(_pages_by_lane)),
    "rollback not honoured": ("rollback", of_class(_NoRollback)),
    "pages are written in ascending order": ("closed", of_class(_SortedPages)),
    "blank slots are as they were": ("closed", of_class(_NothingBlank)),
    "slots of all pages are blank": ("closed", of_class(_AllPagesBlank)),
    "blank slots counted from the end": ("swapped", of_class(_BlankFromTheEnd)),
    "pages are not copied": ("swapped", wrong_reads(lambda reads, group, plan: {"copies": reads.copies[:0]})),
    "read_pages copies nothing": ("swapped", of_class(_SharedPages)),
    "pages from the fourth on in reverse order": ("pages", wrong_reads(_late_pages_reversed)),
}
"""Name -> the rung of the ladder that must catch it, and how it is made."""
