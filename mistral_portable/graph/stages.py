"""The pass that cuts a graph between layers into stages, each a graph of its own, and where to cut it evenly.

Source of the idea: Huang et al. 2019, GPipe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

from mistral_portable.errors import GraphError
from mistral_portable.graph.ir import PLAN_INPUTS, Graph
from mistral_portable.graph.passes import drop_dead_nodes
from mistral_portable.graph.verify import infer_shapes, verify

__all__ = ["cut", "even_cuts", "layers_of"]


def layers_of(graph: Graph) -> tuple[int, ...]:
    """The layers whose attention a graph has, in order."""
    return tuple(node.integer("layer") for node in graph.nodes if node.op == "attention")


def cut(graph: Graph, cuts: Sequence[int]) -> tuple[Graph, ...]:
    """Cut a graph before each of the layers `cuts`; other passes come first.

    A stage has the nodes and parameters of its layers. The hidden states [T, H] that pass to the next stage are an
    output of the one and an input of the other, under the name that they have in `graph`. A parameter that two stages
    read belongs to both, as does a value that depends on inputs alone: the factors of adapters, say. Each output and
    tap belongs to the stage that computes it.

    Raises GraphError for cuts that do not ascend from 1 to the last layer, or if a layer reads more of another stage
    than these hidden states.

    Example: 4 layers, cuts (2,). Stage 0 has the embedding and the layers 0 and 1, and returns `layers.1.output`; stage
    1 takes that and has the layers 2 and 3, the last norm and the logits.
    """
    layers = layers_of(graph)
    if any(after <= before for before, after in pairwise((0, *cuts, len(layers)))):
        raise GraphError(f"cuts {tuple(cuts)} must ascend from 1 to {len(layers) - 1}: there are {len(layers)} layers")
    passed = [graph.taps[f"hidden_states.{layer}"] for layer in cuts]
    stages = tuple(_stage(graph, taken, given) for taken, given in pairwise((None, *passed, None)))
    if sum((layers_of(stage) for stage in stages), ()) != layers:
        raise GraphError(f"cuts {tuple(cuts)}: a layer reads more than the hidden states of the one before it")
    return stages


def _stage(graph: Graph, taken: str | None, given: str | None) -> Graph:
    """The stage between two values; None: from the beginning, or to the end."""
    place = {node.name: index for index, node in enumerate(graph.nodes)}
    begin = 0 if taken is None else place[taken] + 1
    end = len(graph.nodes) if given is None else place[given] + 1

    def own(values: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in values.items() if begin <= place[value] < end}

    # Of earlier nodes those stay that the stage reads; attention weights, which nobody reads, would keep others.
    earlier = [node for node in graph.nodes[:begin] if node.name != taken and node.op != "attention_weights"]
    stage = drop_dead_nodes(
        Graph(
            graph.parameters,
            (*earlier, *graph.nodes[begin:end]),
            own(graph.outputs) if given is None else {**own(graph.outputs), given: given},
            own(graph.taps),
            graph.inputs if taken is None else {**graph.inputs, taken: infer_shapes(graph)[taken]},
        )
    )
    read = {value for node in stage.nodes for value in node.inputs}
    inputs = {name: shape for name, shape in stage.inputs.items() if name in read or name in PLAN_INPUTS}
    return verify(replace(stage, inputs=inputs))


def even_cuts(graph: Graph, stages: int, nbytes: Mapping[str, int]) -> tuple[int, ...]:
    """The cuts into so many stages of which the largest has the fewest bytes of parameters.

    nbytes: of each checkpoint tensor. The embedding's and the head's count like any other. Raises GraphError for fewer
    than 1 stage, or more than layers.

    Example: layers of 10 bytes, an embedding and a head of 20 each. Two stages of 6 layers: (3,), 50 bytes each; three:
    (2, 4), that is 40, 20, 40.
    """
    count = len(layers_of(graph))
    if not 1 <= stages <= count:
        raise GraphError(f"{stages} stages: a model of {count} layers can be cut into 1 to {count}")
    sizes = [
        sum(nbytes[part] for parameter in layer.parameters.values() for part in parameter.parts)
        for layer in cut(graph, range(1, count))
    ]

    @cache
    def best(begin: int, stages: int) -> tuple[int, tuple[int, ...]]:
        """Bytes of the largest stage, and the cuts, of the layers from `begin` on."""
        if stages == 1:
            return sum(sizes[begin:]), ()
        found = []
        for end in range(begin + 1, count - stages + 2):
            rest, cuts = best(end, stages - 1)
            found.append((max(sum(sizes[begin:end]), rest), (end, *cuts)))
        return min(found)

    return best(0, stages)[1]
