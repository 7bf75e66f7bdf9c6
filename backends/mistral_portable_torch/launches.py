"""Nodes of a graph that are computed together: each group is one kernel where Triton is."""

from collections import Counter
from collections.abc import Mapping

from mistral_portable.graph import Graph, Node, Parameter
from mistral_portable.graph.liveness import Launch

__all__ = ["launches"]


def launches(graph: Graph) -> tuple[Launch, ...]:
    """All nodes, each in one launch, in an order in which they can be computed.

    Joined are a sum and its RMS norm, in place of the sum, with both as results; the rotations of queries and keys with
    the attention that alone reads them, in its place; and a SwiGLU with the product that it alone takes its halves
    from, in its own place. Of a layer of a fused graph these are left:

    input_layernorm with the sum before it, q+k+v, attention with q_rope and k_rope, o, post_attention_layernorm with
    the sum before it, silu_mul with gate+up, down; and columns of q+k+v, which are views.
    """
    made = {node.name: node for node in graph.nodes}
    readers = Counter([*graph.outputs.values(), *(value for node in graph.nodes for value in node.inputs)])
    joined: dict[str, Launch] = {}  # by the node in whose place they are
    elsewhere: set[str] = set()
    for node in graph.nodes:
        source = made.get(node.inputs[0])
        turned = [made[value] for value in node.inputs if value in made and made[value].op == "rope"]
        if node.op == "rms_norm" and source is not None and source.op == "add" and source.name not in joined:
            joined[source.name] = Launch((source, node), (source.name, node.name))
            elsewhere.add(node.name)
        elif node.op == "silu_mul" and (product := _product(node, made, readers, graph.parameters)):
            joined[node.name] = Launch((*product, node), (node.name,))
            elsewhere |= {part.name for part in product}
        elif node.op == "attention" and [readers[rope.name] for rope in turned] == [1, 1]:
            joined[node.name] = Launch((*turned, node), (node.name,))
            elsewhere |= {rope.name for rope in turned}
    return tuple(
        joined.get(node.name, Launch((node,), (node.name,))) for node in graph.nodes if node.name not in elsewhere
    )


def _product(
    node: Node, made: Mapping[str, Node], readers: Mapping[str, int], parameters: Mapping[str, Parameter]
) -> tuple[Node, ...]:
    """The product whose halves a SwiGLU alone reads, and the columns that it takes; () if there is none."""
    columns = [made[value] for value in node.inputs if value in made and made[value].op == "take_columns"]
    if [readers[half.name] for half in columns] != [1, 1] or columns[0].inputs != columns[1].inputs:
        return ()
    product, (gate, up) = made[columns[0].inputs[0]], columns
    rows = parameters[product.inputs[1]].shape[0]
    halves = [gate.integer("start"), gate.integer("stop"), up.integer("start"), up.integer("stop")]
    alone = readers[product.name] == 2 and halves == [0, rows // 2, rows // 2, rows]
    return (product, gate, up) if alone else ()
