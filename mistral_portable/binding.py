"""Whether the tensors of a checkpoint are the parameters of a graph."""

from collections.abc import Mapping

from mistral_portable.errors import CheckpointError
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor
from mistral_portable.weights.source import listing

__all__ = ["check_tensors"]


def check_tensors(graph: Graph, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise one CheckpointError that names every tensor which does not fit an unfused graph.

    Missing or mis-shaped parameters do not fit, nor do biases of linears that have none in the graph: to ignore
    them would change the answers. Other tensors (heads, rotary buffers) may be there. `source` is the path.
    """
    problems = []
    for name, parameter in graph.parameters.items():
        if name not in tensors:
            problems.append(f"{name} is missing")
        elif tensors[name].shape != parameter.shape:
            problems.append(f"{name} has the shape {tensors[name].shape} and needs {parameter.shape}")
        bias = f"{name.removesuffix('.weight')}.bias"
        if bias in tensors and bias not in graph.parameters:
            problems.append(f"{bias} is a bias, which this model has not")
    if problems:
        raise CheckpointError(f"{source}: the tensors do not fit the config: {listing(problems)}")
