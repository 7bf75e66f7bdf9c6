"""The meaning of every op, in the plainest NumPy. Arrays are float32 or float64; the result has the input's dtype."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import visible
from mistral_portable.config import Window
from mistral_portable.graph import Rotation

__all__ = [
    "add",
    "attend",
    "embedding",
    "linear",
    "moe",
    "replace_rows",
    "rms_norm",
    "rope",
    "silu_mul",
    "softmax_scores",
    "take_columns",
    "take_rows",
    "weigh",
]

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


def embedding(tokens: Integers, table: Floats) -> Floats:
    """tokens [T], table [V, H] -> [T, H]"""
    rows: Floats = table[tokens]
    return rows


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x [T, H], weight [H] -> [T, H]: x / sqrt(mean(x^2) + eps) * weight. [3, 4] with weight 1 -> [.849, 1.131]"""
    root: Floats = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(eps))
    return x / root * weight


def linear(x: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
    """x [T, I], weight [O, I], bias [O] -> [T, O]: x @ weight.T + bias"""
    y = x @ weight.T
    return y if bias is None else y + bias


def rope(x: Floats, positions: Integers, rotation: Rotation) -> Floats:
    """x [T, heads * head_dim], positions [T] -> same shape: every pair times its complex number of `rotation.table`."""
    cos, sin = np.moveaxis(rotation.table(positions, x.dtype)[:, :, None], 1, 0)  # each [T, 1, half]
    heads = x.reshape(len(x), -1, rotation.head_dim)
    a, b = np.split(heads, 2, axis=-1)
    turned: Floats = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.reshape(x.shape)


def silu_mul(gate: Floats, up: Floats) -> Floats:
    """gate, up [T, I] -> [T, I]: gate / (1 + exp(-gate)) * up"""
    with np.errstate(over="ignore"):  # exp(-gate) may reach inf: the quotient is then 0, as it should be
        activated: Floats = gate / (1 + np.exp(-gate))
    return activated * up


def moe(
    x: Floats,
    scores: Floats,
    gate: Floats,
    up: Floats,
    down: Floats,
    top_k: int,
    *,
    multiply: Callable[[str, Floats, Floats], Floats] = lambda matrix, x, weight: linear(x, weight),
    activate: Callable[[Floats, Floats], Floats] = silu_mul,
) -> Floats:
    """x [T, H], scores [T, E], gate and up [E * I, H], down [E * H, I] -> [T, H]. See the op for what is chosen.

    multiply, activate: a linear of "gate", "up" or "down", and silu_mul, as programs do them that round there.
    """
    experts = scores.shape[1]
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    exponentials = np.exp(np.take_along_axis(scores - scores.max(axis=1, keepdims=True), chosen, axis=1))
    shares = exponentials / exponentials.sum(axis=1, keepdims=True)
    out: Floats = np.zeros_like(x)
    for expert in np.unique(chosen):
        rows, place = np.nonzero(chosen == expert)
        w1, w3, w2 = (matrix.reshape(experts, -1, matrix.shape[1])[expert] for matrix in (gate, up, down))
        inner = activate(multiply("gate", x[rows], w1), multiply("up", x[rows], w3))
        out[rows] += multiply("down", inner, w2) * shares[rows, place, None]
    return out


def add(a: Floats, b: Floats) -> Floats:
    """a, b [T, H] -> [T, H]"""
    return a + b


def weigh(x: Floats, factors: Floats) -> Floats:
    """x [T, H], factors [T, H] or [T, 1] -> [T, H]: their product, and 0 where the factor is 0, whatever x is"""
    with np.errstate(invalid="ignore"):
        return np.where(factors == 0, x.dtype.type(0), x * factors)


def softmax_scores(
    q: Floats, keys: Floats, query_positions: Integers, key_positions: Integers, scale: float, window: Window
) -> Floats:
    """q [T, heads, d], keys [N, kv_heads, d] -> [T, heads, N]: softmax over the visible keys, 0 elsewhere."""
    group = q.shape[1] // keys.shape[1]
    scores = np.einsum("thd,nhd->thn", q, np.repeat(keys, group, axis=1)) * q.dtype.type(scale)
    mask = visible(query_positions[:, None], key_positions[None, :], window)
    scores = np.where(mask[:, None, :], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return result


def attend(weights: Floats, values: Floats) -> Floats:
    """weights [T, heads, N], values [N, kv_heads, d] -> [T, heads * d]"""
    group = weights.shape[1] // values.shape[1]
    attended: Floats = np.einsum("thn,nhd->thd", weights, np.repeat(values, group, axis=1))
    return attended.reshape(len(weights), -1)


def replace_rows(x: Floats, given: Floats, places: Integers) -> Floats:
    """x [T, H], given [E, H], places [E] -> [T, H]: row places[e] is given[e]."""
    out = x.copy()
    out[places] = given
    return out


def take_columns(x: Floats, start: int, stop: int) -> Floats:
    """x [T, N] -> [T, stop - start]"""
    columns: Floats = x[:, start:stop]
    return columns


def take_rows(x: Floats, rows: Integers) -> Floats:
    """x [T, H], rows [R] -> [R, H]"""
    selected: Floats = x[rows]
    return selected
