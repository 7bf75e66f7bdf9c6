"""GroupReads: the keys that the sequences of a step read in one layer group, as integers for attention kernels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary.shared import read_slots
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.config import Window

__all__ = ["GroupReads", "Integers"]

Integers = NDArray[np.int32]


@dataclass(frozen=True)
class GroupReads:
    """The reads of the layer group `spec.groups[index]`. T: tokens of the plan. S: its sequences.

    Example, pages of 4 slots, window 6: a sequence has 11 cached tokens, and its positions 4..10 lie in the pages 5 and
    2. It adds the positions 11 and 12, which see 6..11 and 7..12; page 0 is allocated for position 12. So oldest is
    [6, 7], begins [4], keys [9], table [[5, 2, 0]].
    """

    plan: StepPlan
    spec: CacheSpec
    index: int

    @property
    def window(self) -> Window:
        """The number of positions that a query sees, its own included; None: no limit."""
        return self.spec.groups[self.index].window

    @property
    def page(self) -> int:
        """Slots of a page."""
        return self.spec.groups[self.index].page_size

    @property
    def query_starts(self) -> tuple[int, ...]:
        """[S + 1]: sequence s owns the tokens query_starts[s] .. query_starts[s + 1] - 1."""
        return tuple(self.plan.query_starts.tolist())

    @property
    def max_queries(self) -> int:
        """The number of tokens of the sequence that has most."""
        return int(np.diff(self.plan.query_starts).max())

    @property
    def oldest(self) -> Integers:
        """[T]: the oldest position that each token sees. The same rule as `cache.window.visible`."""
        positions = self.plan.positions
        return np.zeros_like(positions) if self.window is None else np.maximum(positions - self.window + 1, 0)

    @property
    def begins(self) -> Integers:
        """[S]: the position in the first slot of the first page that each sequence reads."""
        first = self.plan.groups[self.index].first
        return first - first % self.page

    @property
    def hidden(self) -> Integers:
        """[S]: leading slots of the first page that no query of the sequence sees."""
        return self.plan.groups[self.index].first - self.begins

    @property
    def keys(self) -> Integers:
        """[S]: keys of each sequence from `begins` on."""
        return self.plan.ends - self.begins

    @property
    def counts(self) -> Integers:
        """[S]: pages that each sequence reads."""
        return -(-self.keys // self.page)

    def columns(self, pages: int, recorded: bool) -> int:
        """Columns of a table for so many pages. A recorded step's columns double, so that it is replayed while a text
        grows.

        Example: window 4096, pages of 256 slots, so a query sees at most 17 pages: 1, 2, 4, 8 or 17 columns.
        """
        if not recorded:
            return pages
        doubled = 1 << (pages - 1).bit_length()
        if self.window is None:
            return doubled
        most = 1 - (1 - self.window) // self.page
        return doubled if 2 * doubled <= most else most

    def table(self, recorded: bool) -> Integers:
        """[S, columns]: the pages that each sequence reads, in order of time, padded with the last of them.

        Masking kernels read hidden keys, too, so padding must be the sequence's own page: another's may hold NaN.
        """
        counts = self.counts
        columns = np.arange(self.columns(int(counts.max()), recorded))
        own: Integers = np.take_along_axis(
            self.plan.groups[self.index].pages, np.minimum(columns, counts[:, None] - 1), axis=1
        )
        return own

    def slots(self, sequence: int) -> Integers:
        """Slots of the pool with the keys that a sequence reads, in order of time."""
        return read_slots(self.plan, self.spec, self.index, sequence).astype(np.int32)
