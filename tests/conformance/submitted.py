"""Programs that choose their tokens, right and wrong: mistakes with the tokens of the step before."""

from collections.abc import Callable

import numpy as np
from conformance.making import Make
from numpy.typing import NDArray

from mistral_portable.boundary import Step
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.cache import StepPlan
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.testing.greedy import ByHost

__all__ = ["MISLED", "submitting"]

Change = Callable[[StepPlan, NDArray[np.int32]], NDArray[np.int32] | None]


def submitting(change: Change) -> Make:
    """Make programs that submit. change: gives what they take for a plan's sources, None: the host's tokens count."""

    class Submitting(ReferenceProgram):
        def submit(self, plan: StepPlan, inputs: Inputs = NO_INPUTS, *, after: Step | None = None) -> Step:
            if plan.sources is not None:
                plan = plan._replace(sources=change(plan, plan.sources))
            return ByHost(self).submit(plan, inputs, after=after)

    return lambda graph, weights, cache: Submitting(graph, weights, cache, "float32")


def _in_order(plan: StepPlan, sources: NDArray[np.int32]) -> NDArray[np.int32]:
    ordered = sources.copy()
    ordered[sources >= 0] = np.sort(sources[sources >= 0])
    return ordered


def _rows_from_0(plan: StepPlan, sources: NDArray[np.int32]) -> NDArray[np.int32]:
    """The sequences that decode come first, and in both steps in the same order."""
    counted = sources.copy()
    counted[sources >= 0] = np.arange(np.count_nonzero(sources >= 0))
    return counted


def _for_all(plan: StepPlan, sources: NDArray[np.int32]) -> NDArray[np.int32]:
    """Prompts, too, get a token of the step before."""
    return np.maximum(sources, 0)


MISLED: dict[str, Change] = {
    "sources in ascending order": _in_order,
    "sources count from 0": _rows_from_0,
    "prompts get tokens of the step before": _for_all,
    "the host's token": lambda plan, sources: None,
}
