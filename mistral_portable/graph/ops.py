"""The closed list of operations: what each one computes, its attributes, and the shape it gives.

A backend implements exactly these; nothing else describes the model. The float meaning of each op is the
NumPy code of `reference/ops.py`. Each function below is the shape rule of the op that it is named after:
it takes the shapes of the inputs and the attributes, raises GraphError, or returns the result's shape.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType

from mistral_portable.errors import GraphError
from mistral_portable.graph.ir import Attribute, Shape
from mistral_portable.graph.rotation import Rotation

__all__ = ["OPS", "Op"]

ShapeRule = Callable[[tuple[Shape, ...], Mapping[str, Attribute]], Shape]


@dataclass(frozen=True)
class Op:
    """`arity`: allowed numbers of inputs. `attributes`: exactly the names that a node carries.

    `rowwise`: row t of the result depends on row t of the activations alone, so rows may be selected before it.
    """

    name: str
    summary: str
    arity: tuple[int, ...]
    attributes: tuple[str, ...]
    rowwise: bool
    shape: ShapeRule


_OPS: dict[str, Op] = {}
OPS: Mapping[str, Op] = MappingProxyType(_OPS)
"""The ops by name."""

_ATTENTION = ("layer", "num_attention_heads", "num_key_value_heads", "head_dim", "scale", "window")


def _op(
    summary: str, *, arity: tuple[int, ...], attributes: tuple[str, ...] = (), rowwise: bool = False
) -> Callable[[ShapeRule], ShapeRule]:
    def register(rule: ShapeRule) -> ShapeRule:
        name = rule.__name__
        _OPS[name] = Op(name, summary, arity, attributes, rowwise, rule)
        return rule

    return register


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise GraphError(message)


def _int(attributes: Mapping[str, Attribute], name: str, minimum: int = 1) -> int:
    value = attributes[name]
    _require(isinstance(value, int) and value >= minimum, f"{name}={value!r} must be an integer >= {minimum}")
    return int(value)  # type: ignore[arg-type]  # narrowed by _require


def _positive(attributes: Mapping[str, Attribute], name: str) -> None:
    value = attributes[name]
    _require(isinstance(value, int | float) and 0 < value < inf, f"{name}={value!r} must be a positive number")


@_op("rows of a table, by token id", arity=(2,))
def embedding(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute]) -> Shape:
    """(tokens [T], table [V, H]) -> [T, H]"""
    tokens, table = shapes
    _require(len(tokens) == 1 and len(table) == 2, f"takes tokens [T] and a table [V, H], got {tokens} {table}")
    return (tokens[0], table[1])


@_op("x / sqrt(mean(x^2) + eps), then times weight", arity=(2,), attributes=("eps",), rowwise=True)
def rms_norm(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute]) -> Shape:
    """(x [T, H], weight [H]) -> [T, H]. Source: Zhang & Sennrich 2019; computed in float32 or wider."""
    x, weight = shapes
    _require(len(x) == 2 and weight == (x[1],), f"takes x [T, H] and weight [H], got {x} {weight}")
    _positive(attributes, "eps")
    return x


@_op("x @ weight.T (+ bias)", arity=(2, 3), rowwise=True)
def linear(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute]) -> Shape:
    """(x [T, I], weight [O, I], bias [O] if given) -> [T, O]"""
    x, weight, *bias = shapes
    _require(len(x) == 2 and len(weight) == 2 and x[1] == weight[1], f"x {x} does not fit weight {weight}")
    _require(bias in ([], [(weight[0],)]), f"bias {bias} does not fit weight {weight}")
    return (x[0], weight[0])


@_op(
    "rotate pairs (j, j + head_dim/2) of each head by position * frequencies[j], and scale them",
    arity=(2,),
    attributes=("rotation",),
)
def rope(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute]) -> Shape:
    """(x [T, heads * head_dim], positions [T]) -> same as x. Source: Su et al. 2021, half-split layout of HF.

    `rotation` is a Rotation, whose `table` has what the pairs are multiplied with.
    """
    x, positions = shapes
    rotation = attributes["rotation"]
    if not isinstance(rotation, Rotation):
        raise GraphError(f"rotation={rotation!r} must be a Rotation")
    head_dim = rotation.head_dim
    _require(all(0 <= f < inf for f in (*rotation.frequencies, rotation.scale)), "rotation: numbers must be finite")
    _require(len(x) == 2 and positions == (x[0],), f"takes x [T, N] and positions [T], got {x} {positions}")
    _require(
        head_dim > 0 and isinstance(x[1], int) and x[1] % head_dim == 0,
        f"x {x} is not a whole number of heads of {head_dim}",
    )
    return x


def _heads(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute], inputs: int) -> tuple[int, int]:
    heads, kv_heads = _int(attributes, "num_attention_heads"), _int(attributes, "num_key_value_heads")
    head_dim = _int(attributes, "head_dim", 2)
    _int(attributes, "layer", 0)
    _positive(attributes, "scale")
    _require(heads % kv_heads == 0, f"{kv_heads} key/value heads do not divide {heads} heads")
    if attributes["window"] is not None:
        _int(attributes, "window")
    q, *kv = shapes
    _require(len(q) == 2 and q[1] == heads * head_dim, f"q {q} is not {heads} heads of {head_dim}")
    _require(kv == [(q[0], kv_heads * head_dim)] * (inputs - 1), f"k/v {kv} are not {kv_heads} heads of {head_dim}")
    return heads, head_dim


@_op("write k, v to the cache, then softmax(scale * q k^T) v over the visible keys", arity=(3,), attributes=_ATTENTION)
def attention(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute]) -> Shape:
    """(q [T, heads * head_dim], k, v [T, kv_heads * head_dim]) -> [T, heads * head_dim].

    Writes and reads the cache of `layer` at the slots that the StepPlan gives. Query head h uses key/value head
    h // (heads / kv_heads). Key p is visible to query q if `cache.window.visible(q, p, window)`.
    """
    heads, head_dim = _heads(shapes, attributes, 3)
    return (shapes[0][0], heads * head_dim)


@_op("the softmax of `attention` itself, over the keys that the sequence reads", arity=(2,), attributes=_ATTENTION)
def attention_weights(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute]) -> Shape:
    """(q [T, heads * head_dim], k [T, kv_heads * head_dim]) -> [T, heads, K].

    Column j is the key at position `first + j`, where `first` is the oldest position that the token's sequence
    reads in this step (`Reads.first` of its layer group); hidden and absent keys are 0. Runs before or after the
    `attention` node of the same layer: it reads earlier keys from the cache, this step's from its input.
    """
    heads, _ = _heads(shapes, attributes, 2)
    return (shapes[0][0], heads, "K")


@_op("silu(gate) * up, where silu(x) = x / (1 + exp(-x))", arity=(2,), rowwise=True)
def silu_mul(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute]) -> Shape:
    """(gate [T, I], up [T, I]) -> [T, I]"""
    gate, up = shapes
    _require(len(gate) == 2 and gate == up, f"gate {gate} and up {up} differ")
    return gate


@_op(
    "sum over the `top_k` experts of highest score: softmax(their scores) * down(silu(gate(x)) * up(x))",
    arity=(5,),
    attributes=("top_k",),
    rowwise=True,
)
def moe(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute]) -> Shape:
    """(x [T, H], scores [T, E], gate [E * I, H], up [E * I, H], down [E * H, I]) -> [T, H].

    The matrices of the experts 0 .. E-1 lie one below the other. The softmax is over the chosen scores alone, in
    float32 or wider. Of equal scores the lower expert comes first: scores 1 3 3 3 and top_k 2 choose 1 and 2, with
    weights 0.5 each. Source: Jiang et al. 2024, Mixtral of Experts, section 2.1.
    """
    x, scores, gate, up, down = shapes
    _require(len(x) == 2 and len(scores) == 2 and x[0] == scores[0], f"takes x [T, H], scores [T, E], got {x} {scores}")
    width, experts = x[1], scores[1]
    _require(isinstance(width, int) and isinstance(experts, int), f"x {x} and scores {scores} have no fixed widths")
    inner = down[1] if len(down) == 2 else 0
    _require(gate == up == (experts * inner, width), f"gate {gate}, up {up}, down {down}: no {experts} experts")  # type: ignore[operator]
    _require(down[0] == experts * width, f"down {down} is not that of {experts} experts over {width} columns")  # type: ignore[operator]
    _require(_int(attributes, "top_k") <= experts, f"top_k={attributes['top_k']}, and there are {experts} experts")  # type: ignore[operator]
    return x


@_op("a + b", arity=(2,), rowwise=True)
def add(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute]) -> Shape:
    """(a [T, H], b [T, H]) -> [T, H]"""
    a, b = shapes
    _require(len(a) == 2 and a == b, f"a {a} and b {b} differ")
    return a


@_op("x * factors, but 0 where a factor is 0", arity=(2,), rowwise=True)
def weigh(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute]) -> Shape:
    """(x [T, H], factors [T, H] or [T, 1]) -> [T, H]. Also infinity and NaN become 0 where the factor is 0."""
    x, factors = shapes
    _require(len(x) == 2 and factors in (x, (x[0], 1)), f"factors {factors} are neither like x {x} nor one column")
    return x


@_op(
    "columns start..stop-1 of x: takes a fused projection apart", arity=(1,), attributes=("start", "stop"), rowwise=True
)
def take_columns(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute]) -> Shape:
    """(x [T, N]) -> [T, stop - start]"""
    (x,) = shapes
    start, stop = _int(attributes, "start", 0), _int(attributes, "stop")
    _require(len(x) == 2 and isinstance(x[1], int) and start < stop <= x[1], f"columns {start}..{stop} of {x}")
    return (x[0], stop - start)


@_op("x with some rows replaced by given ones", arity=(3,))
def replace_rows(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute]) -> Shape:
    """(x [T, H], given [E, H], places [E]) -> [T, H]: row places[e] is given[e], the others are x's.

    Places are different, and may be none. x, rows a b c, given d and places [1] are a d c.
    """
    x, given, places = shapes
    fits = len(x) == 2 and len(given) == 2 and x[1] == given[1] and places == (given[0],)
    _require(fits, f"takes x [T, H], given [E, H] and places [E], got {x} {given} {places}")
    return x


@_op("the rows of x that the caller requested", arity=(2,))
def take_rows(shapes: tuple[Shape, ...], attributes: Mapping[str, Attribute]) -> Shape:
    """(x [T, H], rows [R]) -> [R, H]"""
    x, rows = shapes
    _require(len(x) == 2 and len(rows) == 1, f"takes x [T, H] and rows [R], got {x} {rows}")
    _require(x[0] != rows[0], f"the rows of x {x} are selected already")
    return (rows[0], x[1])
