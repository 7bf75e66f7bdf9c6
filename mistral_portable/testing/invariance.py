"""Whether a program that says `batch_invariant` is: its outputs beside those of each sequence alone, token by token."""

from collections.abc import Mapping

import numpy as np

from mistral_portable.boundary import Program
from mistral_portable.cache import CacheSpec
from mistral_portable.graph import Graph, infer_shapes
from mistral_portable.testing.scenario import Feed, Outputs, Scenario, run

__all__ = ["difference", "run_alone"]


def run_alone(program: Program, graph: Graph, spec: CacheSpec, scenario: Scenario) -> dict[int, Outputs]:
    """Run each sequence of the scenario alone and token by token, and give its outputs for the rows it requests."""
    shapes = infer_shapes(graph)
    alone: dict[int, Outputs] = {}
    for sequence, text in scenario.texts.items():
        steps = tuple((Feed(0, (token,), 1),) for token in text)
        outputs = run(program, graph, spec, Scenario(steps, embeds=scenario.embeds))[0]
        rows = scenario.requested(sequence)
        alone[sequence] = {
            name: outputs[name][rows] if shapes[value][0] == "R" else outputs[name]
            for name, value in graph.outputs.items()
        }
    return alone


def difference(graph: Graph, outputs: Mapping[int, Outputs], alone: Mapping[int, Outputs]) -> str:
    """Describe the first output whose bits are not those of the sequence alone; "" if there is none.

    0 and -0 count as equal. Attention weights are left out: `Program.batch_invariant` does not promise them.
    """
    shapes = infer_shapes(graph)
    for sequence, expected in alone.items():
        for name, value in graph.outputs.items():
            own, found = expected[name], outputs[sequence][name]
            if shapes[value][-1] != "K" and not np.array_equal(found, own):
                rows = int((found != own).any(axis=1).sum())
                return (
                    f"not batch_invariant: {name} of sequence {sequence}, alone and token by token, has other bits in "
                    f"{rows} of {len(own)} rows, by up to {np.max(np.abs(found - own)):.3g}"
                )
    return ""
