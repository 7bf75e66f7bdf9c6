"""Bytes of a step's intermediate values and of its kernels' own memory, known from its plan before it begins.

An upper bound: what tests count with an allocator that counts lies between half of it and it.
"""

from collections.abc import Mapping
from math import prod

from mistral_portable.graph import Graph, Node, Shape, infer_shapes
from mistral_portable.graph.liveness import Launch, most_bytes
from mistral_portable_torch.attention import Attention, Sizes
from mistral_portable_torch.ggml import SLICE
from mistral_portable_torch.launches import launches

__all__ = ["scratch_bytes"]

_UNPACKING = 10  # bytes per weight of a slice while ggml blocks are unpacked: two float32, and codes
_ELEMENTWISE = 12  # bytes per element of an operation in float32: up to three float32 at once


def scratch_bytes(graph: Graph, packed: Mapping[str, int], attention: Attention, itemsize: int, sizes: Sizes) -> int:
    """The most bytes that a step holds at once beside weights and cache.

    packed: the number of weights of each parameter that is unpacked for its products. itemsize: bytes of a number in
    the program's dtype.

    Outputs are kept in float32, too.
    """
    shapes = infer_shapes(graph)

    def own(launch: Launch) -> int:
        """Values that its nodes exchange, and what the greatest of its kernels needs while it runs."""
        within = [node for node in launch.nodes if node.name not in launch.results]
        inner = sum(_bytes(shapes[node.name], sizes, itemsize) for node in within if node.op != "take_columns")
        return inner + max(_own(node, packed, shapes, attention, itemsize, sizes) for node in launch.nodes)

    most = most_bytes(graph, launches(graph), lambda name: _bytes(shapes[name], sizes, itemsize), own)
    outputs = sum(_bytes(shapes[name], sizes, 4) for name in graph.outputs.values())
    return most + outputs


def _bytes(shape: Shape, sizes: Sizes, itemsize: int) -> int:
    """Attention weights, whose last dimension is K, are float32."""
    count = {"T": sizes.tokens, "R": sizes.rows, "K": sizes.keys}
    total = 4 if shape[-1] == "K" else itemsize
    for size in shape:
        total *= count.get(size, sizes.tokens) if isinstance(size, str) else size
    return total


def _own(
    node: Node,
    packed: Mapping[str, int],
    shapes: Mapping[str, Shape],
    attention: Attention,
    itemsize: int,
    sizes: Sizes,
) -> int:
    """Bytes that a node's kernel needs while it runs, beside its inputs and its result."""
    shape = shapes[node.name]
    match node.op:
        case "linear" | "embedding":
            return max(_unpacked(packed.get(name, 0), itemsize) for name in node.inputs)
        case "moe":
            return _experts(node, shapes, packed, itemsize, sizes)
        case "attention":
            heads, groups = node.integer("num_attention_heads"), node.integer("num_key_value_heads")
            own = attention.scratch_bytes(sizes, heads, groups, node.integer("head_dim"), itemsize)
            return own + 3 * _bytes(shape, sizes, itemsize)
        case "attention_weights":
            groups = node.integer("num_key_value_heads")
            return 3 * _bytes(shape, sizes, 4) + sizes.keys * groups * node.integer("head_dim") * 4
        case "rms_norm" | "rope" | "silu_mul" | "weigh":
            return _bytes(shape, sizes, _ELEMENTWISE)
    return 0


def _experts(node: Node, shapes: Mapping[str, Shape], packed: Mapping[str, int], itemsize: int, sizes: Sizes) -> int:
    """Scratch of `experts.Experts.mix`: the chosen experts' matrices are gathered, or one expert after the other is
    used."""
    count, chosen = int(shapes[node.inputs[1]][1]), sizes.tokens * node.integer("top_k")
    gathered = chosen <= count
    used = [prod(int(size) for size in shapes[name]) * (chosen if gathered else 1) // count for name in node.inputs[2:]]
    copies = sum(used) * itemsize if gathered else 0
    if any(name in packed for name in node.inputs[2:]):
        copies = sum(used) * itemsize + max(used) * _UNPACKING
    inner = chosen if gathered else sizes.tokens
    width = int(shapes[node.inputs[2]][0]) // count
    return copies + inner * width * (3 * itemsize + _ELEMENTWISE) + 4 * _bytes(shapes[node.name], sizes, 4)


def _unpacked(weights: int, itemsize: int) -> int:
    return weights * itemsize + min(weights, SLICE) * _UNPACKING
