"""Bytes of a step's intermediate values and of its kernels' own memory, known from its plan before it begins.

An upper bound: what MLX counts on a CPU where memory is short lies between an eighth of it and it. Where there is more,
it takes more: it frees a value when the kernels that read it are done, and gives the device others before they are. At
the limit of its memory it waits for them (`Memory.configure`).
"""

from collections.abc import Mapping
from math import prod

from mistral_portable.cache import CacheSpec
from mistral_portable.graph import Graph, Node, Shape, infer_shapes
from mistral_portable.graph.liveness import Launch, most_bytes
from mistral_portable_mlx.attention import Format, Sizes
from mistral_portable_mlx.matrices import Form

__all__ = ["scratch_bytes"]

_LATE = 10  # kernels that MLX gives a CPU before it looks whether the first of them is done (DISPATCHES_PER_TASK)
_ELEMENTWISE = 12  # bytes per number of an operation in float32 that is not one kernel: up to three float32 at once
_UNPACKING = 12  # bytes per number that becomes a float again


def scratch_bytes(
    graph: Graph, spec: CacheSpec, format: Format, forms: Mapping[str, Form], itemsize: int, sizes: Sizes
) -> int:
    """The most bytes that a step holds at once beside weights and cache: its inputs, values, kernels' memory, outputs.

    forms: of the matrices on the device, by parameter. itemsize: bytes of a number in the program's dtype. Outputs are
    kept in float32, too.
    """
    shapes = infer_shapes(graph)

    def own(launch: Launch) -> int:
        (node,) = launch.nodes
        return _own(node, spec, format, forms, shapes, itemsize, sizes)

    launches = [Launch((node,), (node.name,)) for node in graph.nodes]
    most = most_bytes(graph, launches, lambda name: _bytes(shapes[name], sizes, itemsize), own, _LATE)
    outputs = sum(_bytes(shapes[name], sizes, 4) for name in graph.outputs.values())
    return _inputs(graph, sizes) + most + outputs


def _inputs(graph: Graph, sizes: Sizes) -> int:
    """Arrays of `step_inputs`, integers and angles, and the masks that are made of them."""
    angles = sum(rotation.head_dim * 2 for rotation in graph.rotations)
    return sizes.tokens * 4 * (8 + angles + 6 * len(sizes.slots)) + 4 * sum(sizes.slots) + sum(sizes.pairs)


def _bytes(shape: Shape, sizes: Sizes, itemsize: int) -> int:
    """Attention weights [T, heads, K], of which K is the number of slots of each token's page, are float32."""
    if shape[-1] == "K":
        return 4 * int(shape[1]) * max(sizes.pairs)
    counts = {"T": sizes.tokens, "R": sizes.rows, "E": sizes.tokens}
    return itemsize * prod(counts[size] if isinstance(size, str) else size for size in shape)


def _own(
    node: Node,
    spec: CacheSpec,
    format: Format,
    forms: Mapping[str, Form],
    shapes: Mapping[str, Shape],
    itemsize: int,
    sizes: Sizes,
) -> int:
    """Bytes that a node's kernels need while they run, beside its inputs and its result."""
    result = _bytes(shapes[node.name], sizes, 1)  # numbers; of attention weights, bytes
    match node.op:
        case "embedding":
            form = forms[node.inputs[1]]
            return 0 if form.bits is None else form.nbytes((result,)) + result * (_UNPACKING + form.floats.size)
        case "linear":
            form = forms[node.inputs[1]]
            numbers = result + _bytes(shapes[node.inputs[0]], sizes, 1)
            wide = 0 if form.bits is None else form.floats.size
            return numbers * wide + len(node.inputs[2:]) * result * itemsize
        case "moe":
            return _experts(node, forms, shapes, itemsize, sizes)
        case "attention":
            group = spec.group_of(node.integer("layer"))
            heads, kv_heads = node.integer("num_attention_heads"), node.integer("num_key_value_heads")
            # Queries and results in the order of heads and in that of tokens, and so keys and values.
            copies = 6 * result + 4 * result * kv_heads // heads
            return copies * itemsize + 2 * sizes.pairs[group] + format.scratch_bytes(sizes, group, heads, kv_heads)
        case "attention_weights":
            group = spec.group_of(node.integer("layer"))
            keys = sizes.slots[group] * node.integer("num_key_value_heads") * node.integer("head_dim")
            return 4 * (keys + 2 * _bytes(shapes[node.inputs[0]], sizes, 1)) + 2 * result
        case "rms_norm" | "rope" | "silu_mul":
            return 0 if sizes.metal else result * _ELEMENTWISE
        case "weigh":
            return result * _ELEMENTWISE
    return 0


def _experts(node: Node, forms: Mapping[str, Form], shapes: Mapping[str, Shape], itemsize: int, sizes: Sizes) -> int:
    """Scratch of the products with the chosen experts, and of their sum."""
    count = int(shapes[node.inputs[1]][1])
    pairs = sizes.tokens * node.integer("top_k")
    hidden, inner = int(shapes[node.name][1]), int(shapes[node.inputs[4]][1])
    form = forms[node.inputs[2]]
    wide = itemsize if form.floats.size == itemsize else itemsize + form.floats.size
    choosing = sizes.tokens * count * count * 8
    # On a CPU, MLX copies each expert's matrix of float16 or bfloat16 before it multiplies.
    matrices = 0 if sizes.metal or form.bits is not None or itemsize == 4 else (_LATE + 1) * hidden * inner * itemsize
    return choosing + pairs * (6 * hidden * wide + inner * (4 * wide + _ELEMENTWISE)) + matrices
