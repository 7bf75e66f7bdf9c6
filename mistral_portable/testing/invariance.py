"""Whether a program that says `batch_invariant` is: its outputs beside those of each sequence alone, token by token."""

from collections.abc import Iterable, Mapping

import numpy as np

from mistral_portable.boundary import Program
from mistral_portable.cache import CacheSpec
from mistral_portable.graph import Graph, infer_shapes
from mistral_portable.testing.scenario import Feed, Outputs, Scenario, run

__all__ = ["difference", "differing_bits", "run_alone"]


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

    Attention weights are left out: `Program.batch_invariant` does not promise them.
    """
    shapes = infer_shapes(graph)
    weights = {name for name, value in graph.outputs.items() if shapes[value][-1] == "K"}
    names = [name for name in graph.outputs if name not in weights]
    found = differing_bits(names, alone, outputs, "alone and token by token")
    return found and f"not batch_invariant: {found}"


def differing_bits(
    names: Iterable[str], outputs: Mapping[int, Outputs], others: Mapping[int, Outputs], how: str
) -> str:
    """Describe the first of these outputs, of the sequences in `outputs`, that has other bits in `others`; "" if there
    is none. 0 and -0 count as equal. how: the way in which `outputs` were made."""
    for sequence, own in outputs.items():
        for name in names:
            found, other = own[name], others[sequence][name]
            if not np.array_equal(found, other):
                rows = int((found != other).any(axis=1).sum())
                return (
                    f"{name} of sequence {sequence}, {how}, has other bits in {rows} of {len(found)} rows, by up to "
                    f"{np.max(np.abs(found - other)):.3g}"
                )
    return ""
