"""StepPlan: everything an executor must know of one step, in integers."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Integers", "Reads", "StepPlan"]

Integers = NDArray[np.int32]


class Reads(NamedTuple):
    """The places that one layer group writes and reads in a step. Pages have numbers from 0 on in the group's pool.

    slot_mapping: int32 [T]; the slot of the pool, `page * page_size + offset`, that each token's key and value are
        written to. No slot is named twice, and no page that is written belongs to a sequence beside its own.
    pages: int32 [S, P]; for each sequence the pages that hold the positions `first .. end - 1`, where `end` is the
        position after its last token, in order of position and without a repetition. Column 0 is the page of `first`,
        so that position p lies in column `p // page_size - first // page_size`. Shorter rows are padded with 0, a
        page that may be anybody's. For a ring P is 1, and position p lies in offset `p % page_size` of that page.
    first: int32 [S]; the oldest position that each sequence reads.
    copies: int32 [C, 2]; pages (source, target) to copy, whole, before anything of the step is written. No target is a
        source or is named twice, and nothing else refers to it.
    page_count: pages that the group's pool must have by now, more than any number in this plan.
    """

    slot_mapping: Integers
    pages: Integers
    first: Integers
    copies: Integers
    page_count: int


class StepPlan(NamedTuple):
    """One step over S sequences of together T tokens, laid end to end; R rows of the result are wanted.

    tokens: int32 [T]. positions: int32 [T], absolute. lanes: int32 [S], the cache manager's number of each sequence.
    query_starts: int32 [S + 1]; sequence s owns the tokens query_starts[s] .. query_starts[s+1] - 1.
    logit_rows: int32 [R], indices into the token axis, ascending. groups: one Reads per CacheSpec group.
    sources: int32 [T], for plans that are submitted after another one (see `boundary.GreedyProgram`): the row of its R
    whose token takes the place of `tokens[t]`, or -1 where that itself counts; None: all of `tokens` count.

    Example, window 3 and pages of 4 slots: sequence A in lane 0 has 4 cached tokens, all in page 0, and adds two;
    sequence B in lane 1 is new and has three; the last row of each is wanted:

        tokens    [a4 a5 | b0 b1 b2]      positions [4 5 | 0 1 2]
        lanes     [0, 1]                  query_starts [0, 2, 5]    logit_rows [1, 4]
        slot_mapping [4 5 | 8 9 10]       pages     [[0 1] [2 0]]   first [2, 0]    copies []    page_count 3

    Query a4 sees the positions 2, 3, 4: the last two slots of page 0 and the first of page 1, that is 2, 3, 4; query a5
    sees 3, 4, 5 in the slots 3, 4, 5. The second page of B is padding.
    """

    tokens: Integers
    positions: Integers
    lanes: Integers
    query_starts: Integers
    logit_rows: Integers
    groups: tuple[Reads, ...]
    sources: Integers | None = None

    @property
    def ends(self) -> Integers:
        """int32 [S]: the position after each sequence's last token; [6, 3] in the example."""
        return self.positions[self.query_starts[1:] - 1] + np.int32(1)

    @property
    def spans(self) -> list[slice]:
        """Each sequence's tokens on the token axis; 0:2 and 2:5 in the example."""
        starts: list[int] = self.query_starts.tolist()
        return [slice(begin, end) for begin, end in pairwise(starts)]
