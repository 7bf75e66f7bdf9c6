"""Backends whose bits do not depend on chunks and batches, as they say, or do: made from the reference."""

from collections.abc import Callable, Iterator

import numpy as np
from conformance.making import Array, Make, of_class

from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.cache import CacheSpec, LayerGroup, Reads, StepPlan, first_visible
from mistral_portable.reference.program import ReferenceProgram

__all__ = ["INVARIANT", "VARIANT", "OneTokenSteps"]


class OneTokenSteps(ReferenceProgram):
    """Makes a step of its own for each token of a plan. It takes no embeddings."""

    batch_invariant = True

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
        steps = [super(OneTokenSteps, self).step(one, inputs) for one in _single_tokens(plan, self._cache_spec)]
        return {name: np.concatenate([step[name] for step in steps]) for name in self._graph.outputs}


def _single_tokens(plan: StepPlan, spec: CacheSpec) -> Iterator[StepPlan]:
    """A plan for each token, in order. [a4 a5 | b0] becomes [a4], [a5], [b0]."""
    for sequence, span in enumerate(plan.spans):
        for token in range(span.start, span.stop):
            groups = zip(spec.groups, plan.groups, strict=True)
            yield StepPlan(
                tokens=plan.tokens[token : token + 1],
                positions=plan.positions[token : token + 1],
                lanes=plan.lanes[sequence : sequence + 1],
                query_starts=np.array([0, 1], np.int32),
                logit_rows=np.zeros(np.count_nonzero(plan.logit_rows == token), np.int32),
                groups=tuple(_single_reads(group, reads, plan, sequence, token) for group, reads in groups),
            )


def _single_reads(group: LayerGroup, reads: Reads, plan: StepPlan, sequence: int, token: int) -> Reads:
    """The reads and writes of one token. The plan's first one makes its copies."""
    position, begin = int(plan.positions[token]), int(reads.first[sequence])
    first = first_visible(position, group.window)
    size = group.page_size
    columns = slice(0, 1) if group.ring else slice(first // size - begin // size, position // size - begin // size + 1)
    return reads._replace(
        slot_mapping=reads.slot_mapping[token : token + 1],
        pages=reads.pages[sequence : sequence + 1, columns],
        first=np.array([first], np.int32),
        copies=reads.copies if token == 0 else reads.copies[:0],
    )


def _an_ulp_off(where: Callable[[StepPlan], bool]) -> Make:
    """Make programs whose outputs are one ulp higher in the steps that `where` selects."""

    class Uneven(OneTokenSteps):
        def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
            outputs = super().step(plan, inputs)
            return (
                {name: np.nextafter(x, np.float32(np.inf)) for name, x in outputs.items()} if where(plan) else outputs
            )

    return of_class(Uneven)


INVARIANT: dict[str, tuple[str, Make]] = {
    f"a step for each token, {rung}": (rung, of_class(OneTokenSteps)) for rung in ("op.attention", "rollback", "rows")
}
"""Name -> a rung of the ladder that must let it pass, and how it is made."""

VARIANT: dict[str, tuple[str, Make]] = {
    "chunks an ulp off": ("chunked", _an_ulp_off(lambda plan: len(plan.tokens) > len(plan.lanes))),
    "batches an ulp off": ("ragged", _an_ulp_off(lambda plan: len(plan.lanes) > 1)),
    "lanes other than 0 an ulp off": ("swapped", _an_ulp_off(lambda plan: bool(plan.lanes.any()))),
}
"""Name -> the rung of the ladder that must catch it, and how it is made."""
