"""Parts that lowerings have in common: checks of inputs and of saved lanes, notices, stored types."""

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary.program import Inputs, LaneState
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import CacheError, InputError
from mistral_portable.graph import Graph, Node
from mistral_portable.weights import AffineTensor, BlockTensor, Tensor

__all__ = [
    "attention_weights_by_position",
    "check_inputs",
    "check_lane_state",
    "gigabytes",
    "notice_unpacked",
    "stored_dtype",
]

_FLOATS = ("float32", "float16", "bfloat16")


def check_inputs(graph: Graph, plan: StepPlan, inputs: Inputs) -> None:
    """Raise InputError unless `inputs` are a NumPy array for each of `graph.given`, of its shape: floats where it has
    two dimensions, integers where it has one.

    Rows of `replace_rows` are checked against the step's tokens: from 0 on, none twice.
    """
    given = graph.given
    if not given and not inputs:
        return
    if inputs.keys() != given.keys():
        raise InputError(f"the step was given the inputs {sorted(inputs)}, and the graph declares {sorted(given)}")
    sizes: dict[str, int] = {"T": len(plan.tokens), "R": len(plan.logit_rows)}
    for name, shape in given.items():
        array = inputs[name]
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {name!r} is a {type(array).__name__}: give a NumPy array")
        expected = tuple(
            sizes.setdefault(size, array.shape[0]) if isinstance(size, str) and array.ndim else size for size in shape
        )
        if array.shape != expected:
            raise InputError(f"input {name!r} has the shape {array.shape}, and {expected} is needed")
        if array.dtype.kind not in ("f" if len(shape) == 2 else "iu"):
            wanted = "floats" if len(shape) == 2 else "integers"
            raise InputError(f"input {name!r} is {array.dtype}: give {wanted}")
    for node in graph.nodes:
        if node.op == "replace_rows" and node.inputs[2] in given:
            places = inputs[node.inputs[2]]
            if len(places) and not 0 <= places.min() <= places.max() < len(plan.tokens):
                raise InputError(f"input {node.inputs[2]!r} names a row beyond the step's {len(plan.tokens)} tokens")
            if len(np.unique(places)) != len(places):
                raise InputError(f"input {node.inputs[2]!r} names a row twice")


def attention_weights_by_position(
    node: Node,
    plan: StepPlan,
    spec: CacheSpec,
    found: Callable[[int, NDArray[np.intp]], NDArray[Any]],
    dtype: type[np.floating[Any]] = np.float32,
) -> NDArray[Any]:
    """The result of an `attention_weights` node, [T, heads, K]: column j is the position first + j, hidden keys 0.

    found: called with s and the slots of the keys that sequence s reads, in order of position; gives its weights over
    them, [tokens of s, heads, slots]. Example: a ring of 5 slots, positions 2..5 read: slots 2 3 4 0, so K = 4.
    """
    index = spec.group_of(node.integer("layer"))
    first, ends, ring = plan.groups[index].first, plan.ends, spec.groups[index].slots
    shape = len(plan.tokens), node.integer("num_attention_heads"), int(np.max(ends - first))
    out: NDArray[Any] = np.zeros(shape, dtype)
    for s, tokens in enumerate(plan.spans):
        slots = np.arange(first[s], ends[s]) % ring
        out[tokens, :, : len(slots)] = found(s, slots)
    return out


def check_lane_state(
    state: LaneState,
    spec: CacheSpec,
    rows: Mapping[str, tuple[tuple[int, ...], str]],
    *,
    axis: int = 0,
    suffixes: Mapping[str, str] | None = None,
) -> list[int]:
    """The number of slots (or pages) that a saved lane has in each layer group; 0 for a lane that never stepped.

    rows: for each kind of array ("keys", "values"), its shape without `axis`, the one that counts slots, and its dtype
    as NumPy names it. Arrays are called KIND.LAYER, and KIND.LAYER.SUFFIX where `suffixes` gives the kind one.

    Raises CacheError if names, shapes or dtypes are not this model's, or the layers of a group differ in length.
    """
    if not state:
        return [0] * len(spec.groups)
    suffixes = suffixes or {}

    def name(kind: str, layer: int) -> str:
        base, suffix = kind.partition(".")[0], suffixes.get(kind)
        return f"{base}.{layer}.{suffix}" if suffix else f"{base}.{layer}"

    names = {name(kind, layer) for group in spec.groups for layer in group.layers for kind in rows}
    if set(state) != names:
        raise CacheError(f"the saved lane holds {', '.join(sorted(state))}: not the layers of this model")
    counts = []
    for group in spec.groups:
        count = -1
        for layer in group.layers:
            for kind, (shape, dtype) in rows.items():
                array = np.asarray(state[name(kind, layer)])
                own = array.shape[:axis] + array.shape[axis + 1 :]
                count = array.shape[axis] if count < 0 and array.ndim > axis else count
                if array.ndim <= axis or own != shape or array.dtype != dtype or array.shape[axis] != count:
                    raise CacheError(
                        f"the saved lane does not fit this model: {name(kind, layer)} is {array.dtype} {array.shape}"
                    )
        counts.append(count)
    return counts


def notice_unpacked(
    graph: Graph,
    weights: Mapping[str, Tensor],
    dtype: str,
    reason: str,
    kept: Callable[[Tensor], bool] = lambda tensor: not isinstance(tensor, BlockTensor | AffineTensor),
) -> None:
    """Warn of matrices that take more memory than in the file: those that `kept` denies become `dtype`.

    `reason` ends the sentence "5 matrices (3 in q4_0, 2 in q6_k) are unpacked to float32: REASON".
    """
    parts = [weights[part] for parameter in graph.parameters.values() for part in parameter.parts]
    kinds = Counter(part.dtype for part in parts if len(part.shape) == 2 and not kept(part))
    if kinds:
        listed = ", ".join(f"{count} in {kind}" for kind, count in sorted(kinds.items()))
        warnings.warn(
            f"{sum(kinds.values())} matrices ({listed}) are unpacked to {dtype}, which takes more memory than in the "
            f"file: {reason}",
            stacklevel=2,
        )


def stored_dtype(tensors: Iterable[Tensor], known: Collection[str] = _FLOATS) -> str:
    """The float type, one of `known`, that most bytes of the matrices belong to; "float32" if there is no matrix.

    Blocks count as the type of their scales: ggml's as float16, MLX's groups as theirs, FP8 as bfloat16.
    """
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) == 2:
            kind = tensor.scales.dtype if isinstance(tensor, AffineTensor) else tensor.dtype
            blocks = "bfloat16" if kind == "float8_e4m3" else "float16"  # as models and scales of that kind usually are
            sizes[kind if kind in known else blocks] += tensor.nbytes
    return sizes.most_common(1)[0][0] if sizes else "float32"


def gigabytes(size: int) -> str:
    """Bytes for people: 4_100_000_000 -> "4.10 GB"."""
    return f"{size / 1e9:.2f} GB"
