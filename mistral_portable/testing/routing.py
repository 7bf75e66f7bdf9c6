"""Clear choices of experts: where two scores are nearly the same, honest programs of the same precision may differ."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.graph import Graph, infer_shapes

__all__ = ["decide_clearly"]

_LEVEL, _NOISE = 3.0, 0.02


def decide_clearly(graph: Graph, tensors: Mapping[str, NDArray[np.float64]], random: np.random.Generator) -> None:
    """Change the weights of an unfused graph with E experts, in place, so that no two scores of a token are close.

    The first E columns of the residual stream then hold E levels far apart, in an order that each token of the
    vocabulary has for itself. Nothing that is added to the stream changes them, and a router reads one of them for each
    expert, in an order of its own. Levels of 4 experts: -3 -1 1 3.
    """
    choices = [node for node in graph.nodes if node.op == "moe"]
    if not choices:
        return
    width: Any = infer_shapes(graph)[choices[0].inputs[1]][1]
    levels = np.linspace(-_LEVEL, _LEVEL, width)
    scores = {node.inputs[1] for node in choices}
    added = {name for node in graph.nodes if node.op == "add" for name in node.inputs}
    for node in graph.nodes:
        if node.op == "embedding":
            table = tensors[node.inputs[1]]
            table[:, :width] = random.permuted(np.tile(levels, (len(table), 1)), axis=1)
        elif node.op == "rms_norm":
            tensors[node.inputs[1]][:width] = 1
        elif node.op == "linear" and node.name in scores:
            router = tensors[node.inputs[1]]
            router *= _NOISE
            router[random.permutation(width), np.arange(width)] += 1
        elif node.op in ("linear", "moe") and node.name in added:
            weight = node.inputs[1] if node.op == "linear" else node.inputs[4]
            for part in graph.parameters[weight].parts:
                tensors[part][:width] = 0
