"""From nodes to closures: every op of the closed list, in float32."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.graph import Node, Rotation
from mistral_portable_toy.attention import Floats, LayerCache, attention, attention_weights

__all__ = ["OPS", "Kernel", "lower"]

Kernel = Callable[..., Floats]
"""Takes the StepPlan and the node's inputs, returns the node's result."""


def lower(node: Node, caches: Mapping[int, LayerCache]) -> Kernel:
    """Bind what is known before the first step: the op's attributes and, for attention, its layer's cache."""
    attributes: Any = node.attributes
    if node.op in ("attention", "attention_weights"):
        cache = caches[attributes["layer"]]
        return partial(OPS[node.op], cache, scale=attributes["scale"], window=attributes["window"])
    kernel = partial(OPS[node.op], **attributes)
    return lambda plan, *inputs: kernel(*inputs)


def _embedding(tokens: NDArray[np.int32], table: Floats) -> Floats:
    """tokens [T], table [V, H] -> [T, H]"""
    rows: Floats = table[tokens]
    return rows


def _replace_rows(x: Floats, given: Floats, places: NDArray[np.int32]) -> Floats:
    """x [T, H], given [E, H], places [E] -> [T, H]"""
    out = x.copy()
    out[places] = given
    return out


def _rms_norm(x: Floats, weight: Floats, *, eps: float) -> Floats:
    """x [T, H], weight [H] -> [T, H]"""
    root: Floats = np.sqrt(np.mean(np.square(x), axis=1, keepdims=True) + np.float32(eps))
    return x / root * weight


def _linear(x: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
    """x [T, I], weight [O, I], bias [O] -> [T, O]"""
    y: Floats = x @ weight.T
    return y if bias is None else y + bias


def _rope(x: Floats, positions: NDArray[np.integer[Any]], *, rotation: Rotation) -> Floats:
    """x [T, heads * d], positions [T] -> same shape: pairs (x_j, x_{j+d/2}) are complex numbers, times cos + i sin."""
    table: Floats = rotation.table(positions)[:, None]  # [T, 1, 2, d/2]
    pairs = x.reshape(len(x), -1, *table.shape[2:])
    turned = (pairs[:, :, 0] + 1j * pairs[:, :, 1]) * (table[:, :, 0] + 1j * table[:, :, 1])  # [T, heads, d/2]
    back: Floats = np.stack([turned.real, turned.imag], axis=2)
    return back.reshape(x.shape)


def _silu_mul(gate: Floats, up: Floats) -> Floats:
    """gate, up [T, I] -> [T, I]"""
    sigmoid: Floats = np.exp(-np.logaddexp(np.float32(0), -gate))  # 1 / (1 + exp(-gate)), but never overflows
    return gate * sigmoid * up


def _moe(x: Floats, scores: Floats, gate: Floats, up: Floats, down: Floats, *, top_k: int) -> Floats:
    """x [T, H], scores [T, E], gate, up [E * I, H], down [E * H, I] -> [T, H], an expert and its tokens at a time."""
    count = scores.shape[1]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]  # of equal scores the lower expert comes first
    best = np.take_along_axis(scores, order, axis=1)
    shares = np.exp(best - best[:, :1])
    shares /= shares.sum(axis=1, keepdims=True)
    out = np.zeros_like(x)
    for expert, (w1, w3, w2) in enumerate(zip(*(np.split(matrix, count) for matrix in (gate, up, down)), strict=True)):
        tokens, place = np.nonzero(order == expert)
        inner = _silu_mul(x[tokens] @ w1.T, x[tokens] @ w3.T)
        out[tokens] += shares[tokens, place][:, None] * (inner @ w2.T)
    return out


OPS: dict[str, Kernel] = {
    "embedding": _embedding,
    "replace_rows": _replace_rows,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "rope": _rope,
    "attention": attention,
    "attention_weights": attention_weights,
    "silu_mul": _silu_mul,
    "moe": _moe,
    "add": lambda a, b: a + b,
    "weigh": lambda x, factors: np.where(factors == 0, np.float32(0), x * factors),
    "take_columns": lambda x, *, start, stop: x[:, start:stop],
    "take_rows": lambda x, rows: x[rows],
}
