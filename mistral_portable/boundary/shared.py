"""Parts that lowerings have in common: checks of inputs and of saved pages, notices, stored types."""

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
    "check_pages",
    "gigabytes",
    "notice_unpacked",
    "read_slots",
    "stored_dtype",
]

_FLOATS = ("float32", "float16", "bfloat16")


def check_inputs(graph: Graph, plan: StepPlan, inputs: Inputs, *, rows_before: int = 0) -> None:
    """Raise InputError unless `inputs` are a NumPy array for each of `graph.given`, of its shape: floats where it has
    two dimensions, integers where it has one.

    Rows of `replace_rows` are checked against the step's tokens: from 0 on, none twice. rows_before: of the step that
    this one is submitted after, which the plan's sources name.
    """
    if plan.sources is not None and plan.sources.max() >= rows_before:
        raise InputError(
            f"the plan takes the token of row {plan.sources.max()} of the step before, and {rows_before} are there: "
            "submit it after the step that it was planned for"
        )
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

    found: called with s and the slots of the keys that sequence s reads, as `read_slots` gives them; gives its weights
    over them, [tokens of s, heads, slots].
    """
    index = spec.group_of(node.integer("layer"))
    shape = len(plan.tokens), node.integer("num_attention_heads"), int(np.max(plan.ends - plan.groups[index].first))
    out: NDArray[Any] = np.zeros(shape, dtype)
    for s, tokens in enumerate(plan.spans):
        slots = read_slots(plan, spec, index, s)
        out[tokens, :, : len(slots)] = found(s, slots)
    return out


def read_slots(plan: StepPlan, spec: CacheSpec, group: int, s: int) -> NDArray[np.intp]:
    """The slots, in the pool of a layer group, of the keys that sequence s reads, in order of position.

    Example: pages of 4 slots, a sequence whose pages are 5 and 2, which reads the positions 2..5: slots 22 23 8 9. A
    ring of 5 slots in page 1: slots 7 8 9 5.
    """
    reads, own = plan.groups[group], spec.groups[group]
    positions = np.arange(reads.first[s], plan.ends[s], dtype=np.intp)
    columns = 0 if own.ring else positions // own.page_size - reads.first[s] // own.page_size
    slots: NDArray[np.intp] = reads.pages[s, columns] * own.page_size + positions % own.page_size
    return slots


def check_pages(
    state: LaneState,
    spec: CacheSpec,
    group: int,
    count: int,
    rows: Mapping[str, tuple[tuple[int, ...], str]],
    suffixes: Mapping[str, str] | None = None,
) -> None:
    """Raise CacheError unless saved pages are `count` pages of this layer group.

    rows: for each kind of array ("keys", "values"), the shape that a page has in it, and its dtype as NumPy names it.
    Arrays are called KIND.LAYER, and KIND.LAYER.SUFFIX where `suffixes` gives the kind one.
    """
    suffixes = suffixes or {}

    def name(kind: str, layer: int) -> str:
        base, suffix = kind.partition(".")[0], suffixes.get(kind)
        return f"{base}.{layer}.{suffix}" if suffix else f"{base}.{layer}"

    wanted = {name(kind, layer): rows[kind] for layer in spec.groups[group].layers for kind in rows}
    if set(state) != set(wanted):
        raise CacheError(f"the saved lane holds {', '.join(sorted(state))}: not the layers of this model")
    for key, (shape, dtype) in wanted.items():
        array = np.asarray(state[key])
        if array.shape != (count, *shape) or array.dtype != dtype:
            raise CacheError(f"the saved lane does not fit this model: {key} is {array.dtype} {array.shape}")


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
