"""Which values of a graph are needed until when, so that a step holds no others."""

from collections.abc import Mapping, Sequence

from mistral_portable.graph import Graph
from mistral_portable_torch.launches import launches

__all__ = ["last_uses"]


def last_uses(graph: Graph) -> Mapping[str, Sequence[str]]:
    """For each launch, by name, the values that nothing reads after it: inputs and results, but no outputs of the
    graph.

    Example: b = f(a), c = g(a, b), and c is the output: {"b": [], "c": ["a", "b"]}. A result that nothing reads dies
    at its own launch.
    """
    kept = {*graph.outputs.values(), *graph.parameters}
    last: dict[str, str] = {}
    dying: dict[str, list[str]] = {}
    for launch in launches(graph):
        dying[launch.name] = []
        last |= dict.fromkeys([*launch.results, *launch.inputs], launch.name)
    for value, name in last.items():
        if value not in kept:
            dying[name].append(value)
    return dying
