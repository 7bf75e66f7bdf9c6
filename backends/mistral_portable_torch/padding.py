"""Decoding steps brought to few sizes, so that one recording serves steps of several numbers of sequences."""

import numpy as np

from mistral_portable.boundary.program import Inputs
from mistral_portable.cache import StepPlan
from mistral_portable.graph import Graph

__all__ = ["bucket", "padded"]

_WIDTH = 8


def bucket(count: int) -> int:
    """The size that a step of `count` sequences is brought to: 0, 1, 2, 4, 8, 16, 24, 32 and so on."""
    if count == 0:
        return 0
    return 1 << (count - 1).bit_length() if count <= _WIDTH else -(-count // _WIDTH) * _WIDTH


def padded(graph: Graph, plan: StepPlan, inputs: Inputs) -> tuple[StepPlan, Inputs]:
    """A plan of one token per sequence, and its inputs, with the last sequence repeated up to the bucket's size.

    A repeated sequence computes what the last one computes, and writes that to the same slots, so no page is needed
    for it. Rows of logits are repeated likewise, where any are requested. Results of the asked-for sequences and rows
    come first. A step that replaces rows of its input stays as it is: the repeated ones would not be replaced.

    Example: sequences a b c d e of which b and d want logits, become a b c d e e e e with the rows b d.
    """
    count, rows = len(plan.lanes), len(plan.logit_rows)
    others = [name for name, shape in graph.given.items() if shape[0] not in ("T", "R")]
    if any(len(inputs[name]) for name in others):
        return plan, inputs
    every = np.minimum(np.arange(bucket(count)), count - 1)
    chosen = np.minimum(np.arange(bucket(rows)), rows - 1)
    by_size = {"T": every, "R": chosen}
    return plan._replace(
        tokens=plan.tokens[every],
        positions=plan.positions[every],
        lanes=plan.lanes[every],
        query_starts=np.arange(len(every) + 1, dtype=np.int32),
        logit_rows=plan.logit_rows[chosen],
        sources=None if plan.sources is None else plan.sources[every],
        groups=tuple(
            reads._replace(slot_mapping=reads.slot_mapping[every], pages=reads.pages[every], first=reads.first[every])
            for reads in plan.groups
        ),
    ), {
        name: inputs[name][by_size[str(shape[0])]] if name not in others else inputs[name]
        for name, shape in graph.given.items()
    }
