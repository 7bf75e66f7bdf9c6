"""Decoding steps brought to few sizes, so that one recording serves steps of several numbers of tokens."""

import numpy as np

from mistral_portable.boundary.program import Inputs
from mistral_portable.cache import CacheSpec, Reads, StepPlan
from mistral_portable.graph import Graph
from mistral_portable_torch.reads import GroupReads, Integers

__all__ = ["bucket", "padded", "replaces_rows"]

_WIDTH = 8


def bucket(count: int) -> int:
    """The size that a step of `count` tokens is brought to: 0, 1, 2, 4, 8, 16, 24, 32 and so on."""
    if count == 0:
        return 0
    return 1 << (count - 1).bit_length() if count <= _WIDTH else -(-count // _WIDTH) * _WIDTH


def padded(graph: Graph, spec: CacheSpec, plan: StepPlan, inputs: Inputs) -> tuple[StepPlan, Inputs]:
    """A plan in which each token is a sequence of its own, and its inputs; the last one is repeated up to the
    bucket's size.

    A token reads the keys of its sequence up to its own, which are all written before any is read. A repeated one
    computes what the last one computes, and writes that to the same slot, so no page is needed for it. Rows of logits
    are repeated likewise, where any are requested. Results of the asked-for tokens and rows come first. A step that
    replaces rows of its input stays as it is: the repeated ones would not be replaced.

    Example: sequences a, b b, c c of which the last b and both c want logits, become a b b c c c c c with the rows
    b c c c.
    """
    if replaces_rows(graph, inputs):
        return plan, inputs
    count, rows = len(plan.tokens), len(plan.logit_rows)
    others = _others(graph)
    every = np.minimum(np.arange(bucket(count)), count - 1)
    chosen = np.minimum(np.arange(bucket(rows)), rows - 1)
    owners = np.repeat(np.arange(len(plan.lanes)), np.diff(plan.query_starts))[every]
    by_size = {"T": every, "R": chosen}
    return plan._replace(
        tokens=plan.tokens[every],
        positions=plan.positions[every],
        lanes=plan.lanes[owners],
        query_starts=np.arange(len(every) + 1, dtype=np.int32),
        logit_rows=plan.logit_rows[chosen],
        sources=None if plan.sources is None else plan.sources[every],
        groups=tuple(_reads(GroupReads(plan, spec, index), owners, every) for index in range(len(plan.groups))),
    ), {
        name: inputs[name][by_size[str(shape[0])]] if name not in others else inputs[name]
        for name, shape in graph.given.items()
    }


def replaces_rows(graph: Graph, inputs: Inputs) -> bool:
    """Whether rows of a step's input are given."""
    return any(len(inputs[name]) for name in _others(graph))


def _others(graph: Graph) -> list[str]:
    """Names of the inputs that have no row for each token, or for each row of logits."""
    return [name for name, shape in graph.given.items() if shape[0] not in ("T", "R")]


def _reads(reads: GroupReads, owners: Integers, tokens: Integers) -> Reads:
    """The reads of each of the tokens alone; owners: the sequence of each.

    Example, window 2 and pages of 4 slots: a sequence of the pages 5 and 7 adds the positions 4 and 5. They read the
    positions 3, 4 and 4, 5: the pages 5 7 and 7.
    """
    own, first = reads.plan.groups[reads.index], reads.oldest[tokens]
    left = first // reads.page - own.first[owners] // reads.page  # pages that the token no longer sees
    columns = np.minimum(np.arange(own.pages.shape[1]) + left[:, None], own.pages.shape[1] - 1)
    pages = np.take_along_axis(own.pages[owners], columns, axis=1)
    return own._replace(slot_mapping=own.slot_mapping[tokens], pages=pages, first=first)
