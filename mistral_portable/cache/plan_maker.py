"""PlanMaker: makes the arrays of StepPlans from lists."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache.plan import Integers, Reads, StepPlan
from mistral_portable.cache.pool import PagePool
from mistral_portable.cache.table import Advance, Table

__all__ = ["PlanMaker"]

_NO_COPIES = np.zeros((0, 2), np.int32)


class PlanMaker:
    """Makes one plan after another. An array that would be as in the plan before is that one: most steps are one token
    of the same sequences in the same pages, and to make arrays takes half the time of a plan.
    """

    def __init__(self, groups: int) -> None:
        """groups: how many layer groups there are."""
        self._lists: tuple[Sequence[int], ...] = ((), (), (), ())
        self._shape: tuple[Integers, ...] = ()
        self._tables: list[list[Table]] = [[] for _ in range(groups)]
        self._pages: list[Integers] = [np.zeros((0, 0), np.int32)] * groups

    def make(
        self,
        tokens: Integers,
        positions: Sequence[int],
        lists: tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]],
        advances: Sequence[Sequence[Advance]],
        pools: Sequence[PagePool],
    ) -> StepPlan:
        """Make a plan. lists: `lanes`, `query_starts`, `logit_rows` and `sources`, which may be empty. advances: for
        each layer group one of each sequence."""
        if lists != self._lists:
            self._lists, self._shape = lists, tuple([np.array(some, np.int32) for some in lists])
        lanes, query_starts, logit_rows, sources = self._shape
        groups = [self._reads(index, some, pools[index].count) for index, some in enumerate(advances)]
        return StepPlan(
            tokens,
            np.array(positions, np.int32),
            lanes,
            query_starts,
            logit_rows,
            tuple(groups),
            sources if lists[3] else None,
        )

    def _reads(self, index: int, advances: Sequence[Advance], page_count: int) -> Reads:
        tables: list[Table] = []
        slots: list[int] = []
        first: list[int] = []
        copies: list[tuple[int, int]] = []
        for advance in advances:
            tables.append(advance.table)
            slots += advance.slots
            first.append(advance.first)
            copies += advance.copies
        if tables != self._tables[index]:
            self._tables[index], self._pages[index] = tables, _side_by_side(tables)
        return Reads(
            np.array(slots, np.int32),
            self._pages[index],
            np.array(first, np.int32),
            np.array(copies, np.int32) if copies else _NO_COPIES,
            page_count,
        )


def _side_by_side(tables: Sequence[Table]) -> NDArray[np.int32]:
    """The tables' pages, int32 [tables, most pages], the shorter ones padded with 0."""
    pages = np.zeros((len(tables), max([len(table.pages) for table in tables])), np.int32)
    for row, table in zip(pages, tables, strict=True):
        row[: len(table.pages)] = table.pages
    return pages
