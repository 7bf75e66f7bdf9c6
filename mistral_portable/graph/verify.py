"""The executable rules of a graph: every name defined once and before its use, every shape inferred."""

from mistral_portable.errors import GraphError
from mistral_portable.graph.ir import PLAN_INPUTS, Graph, Shape
from mistral_portable.graph.ops import OPS

__all__ = ["infer_shapes", "verify"]


def infer_shapes(graph: Graph) -> dict[str, Shape]:
    """The shape of every value (inputs, parameters, nodes) by name.

    Raises GraphError that names the node: an unknown op, a wrong number of inputs, missing or surplus
    attributes, a value used before it is defined, a name defined twice, or shapes that do not fit.
    """
    for name, shape in PLAN_INPUTS.items():
        if graph.inputs.get(name) != shape:
            raise GraphError(f"input {name!r} must have the shape {shape}, which the StepPlan gives it")
    shapes: dict[str, Shape] = dict(graph.inputs)
    for name, parameter in graph.parameters.items():
        if name in shapes or name != parameter.name:
            raise GraphError(f"parameter {name!r} is defined twice or under another name")
        if not parameter.parts or any(size < 1 for size in parameter.shape):
            raise GraphError(f"parameter {name!r} is empty: shape {parameter.shape}, parts {parameter.parts}")
        shapes[name] = parameter.shape
    for node in graph.nodes:
        where = f"node {node.name!r} ({node.op})"
        op = OPS.get(node.op)
        if op is None:
            raise GraphError(f"{where}: unknown op; the ops are {', '.join(OPS)}")
        if node.name in shapes:
            raise GraphError(f"{where}: the name is defined twice")
        if len(node.inputs) not in op.arity:
            raise GraphError(f"{where}: takes {op.arity} inputs, got {len(node.inputs)}")
        if set(node.attributes) != set(op.attributes):
            raise GraphError(f"{where}: attributes {sorted(node.attributes)}, expected {sorted(op.attributes)}")
        for value in node.inputs:
            if value not in shapes:
                raise GraphError(f"{where}: input {value!r} is not defined before it")
        try:
            shapes[node.name] = op.shape(tuple(shapes[value] for value in node.inputs), node.attributes)
        except GraphError as error:
            raise GraphError(f"{where}: {error}") from None
    return shapes


def verify(graph: Graph) -> Graph:
    """Return `graph` unchanged if it keeps every rule, else raise GraphError.

    Beyond `infer_shapes`: there is an output, outputs and taps are results of nodes, and each layer has at most one
    attention node (two would write the same cache).
    """
    infer_shapes(graph)
    results = {node.name for node in graph.nodes}
    if not graph.outputs:
        raise GraphError("the graph has no output")
    for kind, names in (("output", graph.outputs), ("tap", graph.taps)):
        for name, value in names.items():
            if value not in results:
                raise GraphError(f"{kind} {name!r}: value {value!r} is not the result of a node")
    layers = [node.attributes["layer"] for node in graph.nodes if node.op == "attention"]
    for layer in layers:
        if layers.count(layer) > 1:
            raise GraphError(f"layer {layer} has {layers.count(layer)} attention nodes")
    return graph
