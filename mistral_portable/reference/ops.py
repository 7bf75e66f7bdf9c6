"""What every op means, in the plainest NumPy. Arrays are float32 or float64; the result has the input's dtype."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import visible
from mistral_portable.config import Window

__all__ = [
    "add",
    "attend",
    "embedding",
    "linear",
    "rms_norm",
    "rope",
    "silu_mul",
    "softmax_scores",
    "take_columns",
    "take_rows",
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


def rope(x: Floats, positions: Integers, head_dim: int, theta: float) -> Floats:
    """x [T, heads * head_dim], positions [T] -> same shape.

    In each head the pair (x_j, x_{j+d/2}), d = head_dim, turns by the angle position * theta^(-2j/d):
    (a, b) -> (a cos - b sin, b cos + a sin). Angles are computed in float64, as positions may be large.
    """
    half = head_dim // 2
    frequencies = float(theta) ** (-np.arange(half, dtype=np.float64) / half)
    angles = positions.astype(np.float64)[:, None, None] * frequencies  # [T, 1, half]
    cos, sin = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    heads = x.reshape(len(x), -1, head_dim)
    a, b = heads[..., :half], heads[..., half:]
    turned: Floats = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.reshape(x.shape)


def silu_mul(gate: Floats, up: Floats) -> Floats:
    """gate, up [T, I] -> [T, I]: gate / (1 + exp(-gate)) * up"""
    with np.errstate(over="ignore"):  # exp(-gate) may reach inf: the quotient is then 0, as it should be
        activated: Floats = gate / (1 + np.exp(-gate))
    return activated * up


def add(a: Floats, b: Floats) -> Floats:
    """a, b [T, H] -> [T, H]"""
    return a + b


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


def take_columns(x: Floats, start: int, stop: int) -> Floats:
    """x [T, N] -> [T, stop - start]"""
    columns: Floats = x[:, start:stop]
    return columns


def take_rows(x: Floats, rows: Integers) -> Floats:
    """x [T, H], rows [R] -> [R, H]"""
    selected: Floats = x[rows]
    return selected
