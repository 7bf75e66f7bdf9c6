"""Every op but attention in jax.numpy. Sums are in float32 or wider; a result is rounded once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

__all__ = ["OPS", "product", "rope", "wide"]


def wide(x: Array) -> DTypeLike:
    """The dtype for sums of x: float64 for float64, else float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


def product(subscripts: str, a: Array, b: Array) -> Array:
    """einsum of a and b in the dtype of `a`; the result is `wide(a)`, not rounded."""
    # "highest": by default GPUs and TPUs multiply float32 in fewer bits.
    return jnp.einsum(subscripts, a, b.astype(a.dtype), precision="highest", preferred_element_type=wide(a))


def rope(x: Array, angles: Array) -> Array:
    """Multiply pairs (a, b) as complex numbers: x [T, heads * d], angles [T, 2, d / 2] (cosines, sines) -> like x."""
    cos, sin = angles[:, None, 0], angles[:, None, 1]
    a, b = jnp.split(x.astype(wide(x)).reshape(len(x), -1, 2 * angles.shape[-1]), 2, axis=-1)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def _rms_norm(x: Array, weight: Array, *, eps: float) -> Array:
    """x [T, H], weight [H] -> [T, H]"""
    y = x.astype(wide(x))
    return (y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps) * weight).astype(x.dtype)


def _linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x [T, I], weight [O, I], bias [O] -> [T, O]"""
    y = product("ti,oi->to", x, weight)
    return (y if bias is None else y + bias).astype(x.dtype)


def _silu_mul(gate: Array, up: Array) -> Array:
    """gate, up [T, I] -> [T, I]"""
    return (jax.nn.silu(gate.astype(wide(gate))) * up).astype(gate.dtype)


def _moe(x: Array, scores: Array, gate: Array, up: Array, down: Array, *, top_k: int) -> Array:
    """x [T, H], scores [T, E], gate, up [E * I, H], down [E * H, I] -> [T, H].

    Every expert computes all tokens, and those that did not choose it have the weight 0: so no shape depends on scores.
    """
    best, chosen = jax.lax.top_k(scores.astype(wide(x)), top_k)  # ties: the lower expert first
    shares = jnp.zeros(scores.shape, best.dtype)
    shares = shares.at[jnp.arange(len(x))[:, None], chosen].set(jax.nn.softmax(best, axis=-1))

    def add_expert(out: Array, expert: tuple[Array, ...]) -> tuple[Array, None]:
        w1, w3, w2, share = expert
        y = _linear(_silu_mul(_linear(x, w1), _linear(x, w3)), w2)
        return out + jnp.where(share[:, None] > 0, y * share[:, None], 0), None

    experts = tuple(matrix.reshape(scores.shape[1], -1, matrix.shape[1]) for matrix in (gate, up, down))
    out, _ = jax.lax.scan(add_expert, jnp.zeros(x.shape, wide(x)), (*experts, shares.T))
    return out.astype(x.dtype)


OPS: dict[str, Callable[..., Array]] = {
    "embedding": lambda tokens, table: table[tokens],
    "rms_norm": _rms_norm,
    "linear": _linear,
    "silu_mul": _silu_mul,
    "moe": _moe,
    "add": lambda a, b: a + b,
    "weigh": lambda x, factors: jnp.where(factors == 0, 0, x * factors).astype(x.dtype),
    "take_columns": lambda x, *, start, stop: x[:, start:stop],
    # Places of padding lie beyond x, and are dropped.
    "replace_rows": lambda x, given, places: x.at[places].set(given, mode="drop"),
    "take_rows": lambda x, rows: x[rows],
}
"""Functions by op: inputs in the node's order, attributes by name."""
