"""StepPlan: everything an executor must know of one step, in integers."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Integers", "Reads", "StepPlan"]

Integers = NDArray[np.int32]


@dataclass(frozen=True)
class Reads:
    """The places that one layer group writes and reads in a step.

    slot_mapping: int32 [T]; the slot, within its lane, that each token's key and value are written to.
    first: int32 [S]; the oldest position that each sequence reads. It reads `first .. end - 1`, where `end` is the
        position after its last token; position p lies in slot `p % lane_slots`, so the keys are at most two runs.
    capacity: slots that the lanes of this step need by now; executors may allocate lanes in steps up to the
        group's `slots`. It never exceeds that, so the memory of a windowed lane is constant once its ring is full.
    """

    slot_mapping: Integers
    first: Integers
    capacity: int


@dataclass(frozen=True)
class StepPlan:
    """One step over S sequences of together T tokens, laid end to end; R rows of the result are wanted.

    tokens: int32 [T]. positions: int32 [T], absolute. lanes: int32 [S], where each sequence is cached.
    query_starts: int32 [S + 1]; sequence s owns the tokens query_starts[s] .. query_starts[s+1] - 1.
    logit_rows: int32 [R], indices into the token axis, ascending. groups: one Reads per CacheSpec group.

    Example, window 3 and 5 slots (max_chunk 3): sequence A in lane 0 has 4 cached tokens and adds two; sequence B
    in lane 1 is new and has three; the last row of each is wanted:

        tokens    [a4 a5 | b0 b1 b2]      positions [4 5 | 0 1 2]
        lanes     [0, 1]                  query_starts [0, 2, 5]    logit_rows [1, 4]
        slot_mapping [4 0 | 0 1 2]        first     [2, 0]          capacity 5

    Query a4 sees the positions 2, 3, 4 in the slots 2, 3, 4; query a5 sees 3, 4, 5 in the slots 3, 4, 0.
    """

    tokens: Integers
    positions: Integers
    lanes: Integers
    query_starts: Integers
    logit_rows: Integers
    groups: tuple[Reads, ...]

    @property
    def ends(self) -> Integers:
        """int32 [S]: the position after each sequence's last token; [6, 3] in the example."""
        return self.positions[self.query_starts[1:] - 1] + np.int32(1)

    @property
    def spans(self) -> list[slice]:
        """Each sequence's tokens on the token axis; 0:2 and 2:5 in the example."""
        starts: list[int] = self.query_starts.tolist()
        return [slice(begin, end) for begin, end in pairwise(starts)]
