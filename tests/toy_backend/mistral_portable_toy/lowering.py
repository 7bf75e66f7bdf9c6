"""From nodes to closures: what every op of the closed list means here, in float32."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.graph import Node
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


def _rms_norm(x: Floats, weight: Floats, *, eps: float) -> Floats:
    """x [T, H], weight [H] -> [T, H]"""
    root: Floats = np.sqrt(np.mean(np.square(x), axis=1, keepdims=True) + np.float32(eps))
    return x / root * weight


def _linear(x: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
    """x [T, I], weight [O, I], bias [O] -> [T, O]"""
    y: Floats = x @ weight.T
    return y if bias is None else y + bias


def _rope(x: Floats, positions: NDArray[np.integer[Any]], *, head_dim: int, theta: float) -> Floats:
    """x [T, heads * d], positions [T] -> as x. The pair (x_j, x_{j+d/2}) is a complex number, turned by e^(i angle)."""
    half = head_dim // 2
    angles = positions[:, None, None] * theta ** (-np.arange(half) / half)  # [T, 1, half], float64
    pairs = x.reshape(len(x), -1, 2, half)
    turned = (pairs[:, :, 0] + 1j * pairs[:, :, 1]) * np.exp(1j * angles)  # [T, heads, half]
    return np.stack([turned.real, turned.imag], axis=2).reshape(x.shape).astype(np.float32)


def _silu_mul(gate: Floats, up: Floats) -> Floats:
    """gate, up [T, I] -> [T, I]"""
    sigmoid: Floats = np.exp(-np.logaddexp(np.float32(0), -gate))  # 1 / (1 + exp(-gate)), but never overflows
    return gate * sigmoid * up


OPS: dict[str, Kernel] = {
    "embedding": lambda tokens, table: table[tokens],
    "rms_norm": _rms_norm,
    "linear": _linear,
    "rope": _rope,
    "attention": attention,
    "attention_weights": attention_weights,
    "silu_mul": _silu_mul,
    "add": lambda a, b: a + b,
    "take_columns": lambda x, *, start, stop: x[:, start:stop],
    "take_rows": lambda x, rows: x[rows],
}
