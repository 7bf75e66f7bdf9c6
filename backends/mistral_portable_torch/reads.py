"""Reads: the keys that the sequences of a step read in one layer group, as integers on the host."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import StepPlan
from mistral_portable.cache.spec import LayerGroup
from mistral_portable_torch.pages import Pages

__all__ = ["Integers", "Reads", "group_reads"]

Integers = NDArray[np.int32]


@dataclass(frozen=True)
class Reads:
    """starts: sequence s owns the tokens starts[s] .. starts[s + 1] - 1. positions [T]: of the tokens.

    first [S]: the oldest position that each sequence reads; ends [S]: the one behind its last. pages: of each
    sequence's lane, in order of slots. page: slots of a page; ring: slots of a full lane.
    """

    window: int | None
    starts: tuple[int, ...]
    positions: Integers
    first: Integers
    ends: Integers
    pages: tuple[tuple[int, ...], ...]
    page: int
    ring: int

    @property
    def oldest(self) -> Integers:
        """[T]: the oldest position that each token sees. This backend's translation of `cache.window.visible`."""
        if self.window is None:
            return np.zeros_like(self.positions)
        return np.maximum(self.positions - self.window + 1, 0)

    @property
    def slots(self) -> Integers:
        """[T]: where in the pool, counted in slots, each token's key and value are written."""
        written = np.empty_like(self.positions)
        for s, pages in enumerate(self.pages):
            tokens = slice(self.starts[s], self.starts[s + 1])
            written[tokens] = self._places(pages, self.positions[tokens])
        return written

    @property
    def most_tokens(self) -> int:
        """The tokens of the longest sequence."""
        return max(b - a for a, b in zip(self.starts, self.starts[1:], strict=False))

    def read_slots(self, sequence: int) -> Integers:
        """Where the keys that a sequence reads lie in the pool, in order of time."""
        positions = np.arange(self.first[sequence], self.ends[sequence], dtype=np.int32)
        return self._places(self.pages[sequence], positions)

    def read_pages(self, sequence: int) -> list[int]:
        """The pages with the keys that a sequence reads, in order of time; the first may come again as the last."""
        pages, length = self.pages[sequence], self.ring // self.page
        begin, end = int(self.first[sequence]) // self.page, (int(self.ends[sequence]) - 1) // self.page
        return [pages[number % length] for number in range(begin, end + 1)]

    def _places(self, pages: tuple[int, ...], positions: Integers) -> Integers:
        slots = positions % self.ring
        places: Integers = np.asarray(pages, np.int32)[slots // self.page] * np.int32(self.page) + slots % self.page
        return places


def group_reads(plan: StepPlan, index: int, group: LayerGroup, pages: Pages) -> Reads:
    """The reads of the layer group `index`, whose lanes have room for the plan."""
    return Reads(
        group.window,
        tuple(plan.query_starts.tolist()),
        plan.positions,
        plan.groups[index].first,
        plan.positions[plan.query_starts[1:] - 1] + 1,
        tuple(tuple(pages.of(lane)) for lane in plan.lanes.tolist()),
        pages.page,
        pages.ring,
    )
