"""Which values of a graph are needed until when, so that a step holds no others."""

from collections.abc import Mapping, Sequence

from mistral_portable.graph import Graph

__all__ = ["last_uses"]


def last_uses(graph: Graph) -> Mapping[str, Sequence[str]]:
    """For each node, by name, the values that nothing reads after it: inputs and results, but no outputs of the graph.

    Example: b = f(a), c = g(a, b), and c is the output: {"b": [], "c": ["a", "b"]}. A result that nothing reads dies
    at its own node.
    """
    kept = {*graph.outputs.values(), *graph.parameters}
    last: dict[str, str] = {}
    for node in graph.nodes:
        last[node.name] = node.name
        last |= dict.fromkeys(node.inputs, node.name)
    dying: dict[str, list[str]] = {node.name: [] for node in graph.nodes}
    for value, node_name in last.items():
        if value not in kept:
            dying[node_name].append(value)
    return dying
