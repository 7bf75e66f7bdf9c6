"""A graph as text and as a Mermaid diagram, for people."""

from mistral_portable.graph.ir import Attribute, Graph, Node, Shape
from mistral_portable.graph.rotation import Rotation
from mistral_portable.graph.verify import infer_shapes

__all__ = ["to_mermaid", "to_text"]


def to_text(graph: Graph) -> str:
    """One line per node: `layers.0.q [T, 256] = linear(layers.0.input_layernorm, model...q_proj.weight)`."""
    shapes = infer_shapes(graph)
    lines = [f"input {name} {_shape(graph.inputs[name])}" for name in _used_inputs(graph)]
    for node in graph.nodes:
        attributes = [f"{key}={_number(value)}" for key, value in node.attributes.items()]
        lines.append(f"{node.name} {_shape(shapes[node.name])} = {node.op}({', '.join([*node.inputs, *attributes])})")
    lines += [f"output {name} = {value}" for name, value in graph.outputs.items()]
    return "\n".join(lines)


def to_mermaid(graph: Graph) -> str:
    """A Mermaid `flowchart`; parameters are named inside their node to keep the picture readable."""
    shapes = infer_shapes(graph)
    ids = {node.name: f"n{index}" for index, node in enumerate(graph.nodes)}
    ids |= {name: name for name in _used_inputs(graph)}
    lines = ["flowchart TD"]
    lines += [f'  {name}(["{name} {_shape(graph.inputs[name])}"])' for name in _used_inputs(graph)]
    for node in graph.nodes:
        lines.append(f'  {ids[node.name]}["{_label(graph, node)}"]')
        for value in node.inputs:
            if value not in graph.parameters:
                lines.append(f'  {ids[value]} -->|"{_shape(shapes[value])}"| {ids[node.name]}')
    for index, (name, value) in enumerate(graph.outputs.items()):
        lines.append(f'  out{index}(["{name} {_shape(shapes[value])}"])')
        lines.append(f"  {ids[value]} --> out{index}")
    return "\n".join(lines)


def _label(graph: Graph, node: Node) -> str:
    weights = [value for value in node.inputs if value in graph.parameters]
    return "<br/>".join([f"{node.name}: {node.op}", *weights])


def _used_inputs(graph: Graph) -> list[str]:
    used = {value for node in graph.nodes for value in node.inputs}
    return [name for name in graph.inputs if name in used]


def _shape(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _number(value: Attribute) -> str:
    """A rotation by its first and last frequency, and what it scales: `1..1.15e-06`, `1..7.2e-08 * 1.28`."""
    if isinstance(value, Rotation):
        first, last = value.frequencies[0], value.frequencies[-1]
        scale = f" * {value.scale:.6g}" if value.scale != 1 else ""
        growth = value.query_scale
        grows = f" * (1 + {growth.beta:.6g} ln(1 + p // {growth.original_max_position_embeddings}))" if growth else ""
        return f"{first:.6g}..{last:.6g}{scale}{grows}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
