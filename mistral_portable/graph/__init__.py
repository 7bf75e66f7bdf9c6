"""The backend-agnostic description of the decoder: ops, immutable IR, builder, verifier, passes, rendering."""

from mistral_portable.graph.build import build
from mistral_portable.graph.ir import PLAN_INPUTS, Dim, Graph, Node, Parameter, Shape
from mistral_portable.graph.ops import OPS, Op
from mistral_portable.graph.render import to_mermaid, to_text
from mistral_portable.graph.rotation import Rotation
from mistral_portable.graph.verify import infer_shapes, verify

__all__ = [
    "OPS",
    "PLAN_INPUTS",
    "Dim",
    "Graph",
    "Node",
    "Op",
    "Parameter",
    "Rotation",
    "Shape",
    "build",
    "infer_shapes",
    "to_mermaid",
    "to_text",
    "verify",
]
