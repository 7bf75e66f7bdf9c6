"""Pure rewrites, Graph -> Graph. The engine exposes outputs and selects rows; a backend fuses what it likes."""

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import replace

from mistral_portable.errors import GraphError
from mistral_portable.graph.ir import Graph, Node, Parameter
from mistral_portable.graph.ops import OPS
from mistral_portable.graph.verify import infer_shapes

__all__ = [
    "EMBEDDED_ROWS",
    "EMBEDDING",
    "INPUTS_EMBEDS",
    "accept_embeddings",
    "drop_dead_nodes",
    "expose_attention_weights",
    "expose_embedding",
    "expose_hidden_states",
    "fuse_linears",
    "select_rows",
]


INPUTS_EMBEDS, EMBEDDED_ROWS = "inputs_embeds", "embedded_rows"
"""The inputs that `accept_embeddings` adds."""

EMBEDDING = "embedding"
"""The output that `expose_embedding` adds."""


def accept_embeddings(graph: Graph) -> Graph:
    """Add the inputs `inputs_embeds` [E, H] and `embedded_rows` [E]: rows that take the place of tokens' embeddings.

    Token t gets the row inputs_embeds[e] where embedded_rows[e] = t; where E = 0 the step is the graph's own.
    """
    shapes = infer_shapes(graph)
    nodes: list[Node] = []
    renamed: dict[str, str] = {}
    inputs = dict(graph.inputs)
    for node in graph.nodes:
        nodes.append(replace(node, inputs=tuple(renamed.get(value, value) for value in node.inputs)))
        if node.op == "embedding":
            renamed[node.name] = f"{node.name}.replaced"
            inputs |= {INPUTS_EMBEDS: ("E", shapes[node.name][1]), EMBEDDED_ROWS: ("E",)}
            nodes.append(Node(renamed[node.name], "replace_rows", (node.name, INPUTS_EMBEDS, EMBEDDED_ROWS), {}))
    return replace(
        graph,
        nodes=tuple(nodes),
        outputs={name: renamed.get(value, value) for name, value in graph.outputs.items()},
        taps={name: renamed.get(value, value) for name, value in graph.taps.items()},
        inputs=inputs,
    )


def expose_hidden_states(graph: Graph) -> Graph:
    """Add the outputs `hidden_states.0` .. `hidden_states.L`; the last one is taken after the final norm."""
    return replace(graph, outputs={**graph.outputs, **graph.taps})


def expose_embedding(graph: Graph) -> Graph:
    """Add the output `embedding` [T, H]: the last hidden state, after the final norm, of which logits are made."""
    last = max(graph.taps, key=lambda name: int(name.removeprefix("hidden_states.")))
    return replace(graph, outputs={**graph.outputs, EMBEDDING: graph.taps[last]})


def expose_attention_weights(graph: Graph) -> Graph:
    """Add the outputs `attentions.0` .. `attentions.L-1`, each [T, heads, K] (op `attention_weights`)."""
    nodes: list[Node] = []
    outputs = dict(graph.outputs)
    for node in graph.nodes:
        nodes.append(node)
        if node.op == "attention":
            name = f"{node.name}_weights"
            nodes.append(Node(name, "attention_weights", node.inputs[:2], node.attributes))
            outputs[f"attentions.{node.attributes['layer']}"] = name
    return replace(graph, nodes=tuple(nodes), outputs=outputs)


def drop_dead_nodes(graph: Graph) -> Graph:
    """Remove nodes, parameters and taps that no output depends on.

    An `attention` node stays while its layer has an `attention_weights` node, which reads the keys it has cached.
    """
    exposed = {node.attributes["layer"] for node in graph.nodes if node.op == "attention_weights"}
    live = set(graph.outputs.values())
    live.update(node.name for node in graph.nodes if node.op == "attention" and node.attributes["layer"] in exposed)
    for node in reversed(graph.nodes):
        if node.name in live:
            live.update(node.inputs)
    return Graph(
        {name: parameter for name, parameter in graph.parameters.items() if name in live},
        tuple(node for node in graph.nodes if node.name in live),
        graph.outputs,
        {name: value for name, value in graph.taps.items() if value in live},
        graph.inputs,
    )


def fuse_linears(graph: Graph, kind: Callable[[Parameter], Hashable] = lambda parameter: None) -> Graph:
    """Join the `linear` nodes that read the same value, with weights of one kind: q/k/v become one, gate/up become one.

    q (64, 8), k (16, 8), v (16, 8) over x become one `linear` with a parameter of shape (96, 8) and three parts,
    and three `take_columns`: 0..63, 64..79, 80..95. `kind` lets a backend join those alone that it stores alike.
    Linears with a bias stay as they are.
    """
    groups: dict[tuple[str, Hashable], list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "linear" and len(node.inputs) == 2:
            groups[node.inputs[0], kind(graph.parameters[node.inputs[1]])].append(node)
    parameters = dict(graph.parameters)
    leaders: dict[str, tuple[Node, list[Node]]] = {}
    for (x, _), group in groups.items():
        weights = [graph.parameters[node.inputs[1]] for node in group]
        if len(group) < 2:
            continue
        fused = Parameter(
            "+".join(weight.name for weight in weights),
            (sum(weight.shape[0] for weight in weights), weights[0].shape[1]),
            tuple(part for weight in weights for part in weight.parts),
        )
        parameters[fused.name] = fused
        joined = Node("+".join(node.name for node in group), "linear", (x, fused.name), {})
        start, columns = 0, []
        for node, weight in zip(group, weights, strict=True):
            stop = start + weight.shape[0]
            columns.append(Node(node.name, "take_columns", (joined.name,), {"start": start, "stop": stop}))
            start = stop
        leaders[group[0].name] = (joined, columns)
    replaced = {column.name for _, columns in leaders.values() for column in columns}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name in leaders:
            joined, columns = leaders[node.name]
            nodes += [joined, *columns]
        elif node.name not in replaced:
            nodes.append(node)
    return drop_dead_nodes(replace(graph, parameters=parameters, nodes=tuple(nodes)))


def select_rows(graph: Graph, *outputs: str) -> Graph:
    """Compute `outputs` for the requested rows only: their shape becomes [R, ...] instead of [T, ...].

    `take_rows` is placed as early as the row-wise ops allow. In a causal LM that is right behind the last
    attention: the output projection, the MLP of the last layer, the final norm and the LM head then run on R
    rows, and a prefill chunk that wants no logits (R = 0) skips them.

    Raises GraphError for an unknown output. Taps that no longer exist on all rows are dropped, so expose hidden
    states first.
    """
    for name in outputs:
        if name not in graph.outputs:
            raise GraphError(f"output {name!r} is unknown: the graph has {', '.join(graph.outputs)}")
    some = {graph.outputs[name] for name in outputs}  # values wanted on R rows
    whole = {value for name, value in graph.outputs.items() if name not in outputs}  # values wanted on T rows
    for node in reversed(graph.nodes):
        if node.name in some and (not OPS[node.op].rowwise or any(value in graph.inputs for value in node.inputs)):
            whole.add(node.name)
        if node.name in whole:
            whole.update(node.inputs)
        elif node.name in some:
            some.update(value for value in node.inputs if value not in graph.parameters)
    nodes: list[Node] = []
    on_rows: dict[str, str] = {}
    for node in graph.nodes:
        if node.name in whole:
            nodes.append(node)
            if node.name in some:
                on_rows[node.name] = f"{node.name}.rows"
                nodes.append(Node(on_rows[node.name], "take_rows", (node.name, "logit_rows"), {}))
        elif node.name in some:
            nodes.append(replace(node, inputs=tuple(on_rows.get(value, value) for value in node.inputs)))
            on_rows[node.name] = node.name
    return drop_dead_nodes(
        Graph(
            graph.parameters,
            tuple(nodes),
            {name: on_rows[value] if name in outputs else value for name, value in graph.outputs.items()},
            {name: value for name, value in graph.taps.items() if value in whole},
            graph.inputs,
        )
    )
