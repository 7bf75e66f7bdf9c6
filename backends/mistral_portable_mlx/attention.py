"""Attention over a ring in the order of its slots: no key is moved, and a mask hides keys by their positions.

In shapes, T is the number of tokens of one sequence, C that of the slots of its page, d is head_dim.
"""

from typing import Protocol

import mlx.core as mx

from mistral_portable.boundary import Q8_0_BLOCK

__all__ = ["FloatFormat", "Format", "Q8Format", "mask"]

_FEW = 8  # up to so many queries are multiplied with 8-bit codes; for more, unpacking the codes once is cheaper


def mask(first: mx.array, positions: mx.array, held: mx.array) -> mx.array:
    """The attention mask, bool [T, C]: whether a query sees the key in a slot.

    first: [T], the oldest position that a query sees (`cache.window.visible`). positions: [T], the query's own, the
    newest that it sees. held: [C], the position in each slot, negative in an empty one.
    """
    return (held >= first[:, None]) & (held <= positions[:, None])


class Format(Protocol):
    """A storage format of keys and values."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of a page's arrays: first those of the keys, then as many of the values."""

    def empty(self, heads: int, slots: int) -> list[mx.array]:
        """Make the arrays of a page, zeros, each [heads, slots, n]."""

    def nbytes(self, heads: int, slots: int) -> int:
        """Bytes of `empty`."""

    def encode(self, x: mx.array) -> list[mx.array]:
        """Encode keys or values [heads, T, d] as the stored arrays, each [heads, T, n]."""

    def attend(self, q: mx.array, parts: list[mx.array], seen: mx.array, scale: float) -> mx.array:
        """Attention: q [heads, T, d], `parts` of a page, mask `seen` [T, C] -> [heads, T, d]."""

    def weights(self, q: mx.array, parts: list[mx.array], seen: mx.array, scale: float) -> mx.array:
        """The softmax of `attend`, [heads, T, C]."""


class FloatFormat:
    """Keys and values in the dtype of the activations."""

    parts = ("keys", "values")

    def __init__(self, dtype: mx.Dtype, head_dim: int) -> None:
        self._dtype, self._head_dim = dtype, head_dim

    def empty(self, heads: int, slots: int) -> list[mx.array]:
        return [mx.zeros((heads, slots, self._head_dim), self._dtype) for _ in self.parts]

    def nbytes(self, heads: int, slots: int) -> int:
        return 2 * heads * slots * self._head_dim * self._dtype.size

    def encode(self, x: mx.array) -> list[mx.array]:
        return [x]

    def attend(self, q: mx.array, parts: list[mx.array], seen: mx.array, scale: float) -> mx.array:
        keys, values = parts
        return mx.fast.scaled_dot_product_attention(q[None], keys[None], values[None], scale=scale, mask=seen)[0]

    def weights(self, q: mx.array, parts: list[mx.array], seen: mx.array, scale: float) -> mx.array:
        keys = parts[0].astype(mx.float32)
        scores = _grouped(q.astype(mx.float32) * scale, len(keys)) @ keys.swapaxes(1, 2)
        return _softmax(scores, seen)


class Q8Format:
    """Keys and values in 8 bits, with a float16 scale max|x| / 127 for each 32 numbers of a head ("q8_0" of Precision).

    MLX multiplies with affine groups, scale * code + bias, so codes are stored with 128 added, and the bias is
    -128 * scale. Heads are padded with zeros to whole groups, which changes neither scales nor scores.
    """

    parts = ("keys", "keys.scales", "values", "values.scales")

    def __init__(self, dtype: mx.Dtype, head_dim: int) -> None:
        self._dtype, self._head_dim = dtype, head_dim
        self._groups = -(-head_dim // Q8_0_BLOCK)

    def empty(self, heads: int, slots: int) -> list[mx.array]:
        kinds = [(self._groups * Q8_0_BLOCK // 4, mx.uint32), (self._groups, mx.float16)] * 2
        return [mx.zeros((heads, slots, width), dtype) for width, dtype in kinds]

    def nbytes(self, heads: int, slots: int) -> int:
        return 2 * heads * slots * self._groups * (Q8_0_BLOCK + 2)

    def encode(self, x: mx.array) -> list[mx.array]:
        blocks = self._padded(x.astype(mx.float32)).reshape(*x.shape[:-1], self._groups, Q8_0_BLOCK)
        scales = (mx.abs(blocks).max(axis=-1) / 127).astype(mx.float16)
        steps = scales.astype(mx.float32)[..., None]
        codes = mx.where(steps > 0, mx.clip(mx.round(blocks / steps), -127, 127), 0) + 128
        return [codes.astype(mx.uint8).reshape(*x.shape[:-1], -1).view(mx.uint32), scales]

    def attend(self, q: mx.array, parts: list[mx.array], seen: mx.array, scale: float) -> mx.array:
        if q.shape[1] > _FEW:
            keys, values = (self._unpacked(*parts[at : at + 2]) for at in (0, 2))
            return mx.fast.scaled_dot_product_attention(q[None], keys[None], values[None], scale=scale, mask=seen)[0]
        weights = self.weights(q, parts, seen, scale)
        codes, scales = parts[2:]
        grouped = weights.reshape(len(codes), -1, weights.shape[-1])
        out = self._multiply(grouped, codes, scales, transpose=False)
        return out.reshape(len(weights), q.shape[1], -1)[..., : self._head_dim].astype(self._dtype)

    def weights(self, q: mx.array, parts: list[mx.array], seen: mx.array, scale: float) -> mx.array:
        codes, scales = parts[:2]
        queries = _grouped(self._padded(q.astype(mx.float32) * scale), len(codes))
        return _softmax(self._multiply(queries, codes, scales, transpose=True), seen)

    def _padded(self, x: mx.array) -> mx.array:
        missing = self._groups * Q8_0_BLOCK - self._head_dim
        return mx.pad(x, [(0, 0), (0, 0), (0, missing)]) if missing else x

    def _multiply(self, x: mx.array, codes: mx.array, scales: mx.array, transpose: bool) -> mx.array:
        numbers = scales.astype(mx.float32)
        return mx.quantized_matmul(x, codes, numbers, -128 * numbers, transpose, Q8_0_BLOCK, 8)

    def _unpacked(self, codes: mx.array, scales: mx.array) -> mx.array:
        numbers = scales.astype(mx.float32)
        floats = mx.dequantize(codes, numbers, -128 * numbers, Q8_0_BLOCK, 8)
        return floats[..., : self._head_dim].astype(self._dtype)


def _grouped(q: mx.array, kv_heads: int) -> mx.array:
    """Group queries by their key/value head: [heads, T, d] -> [kv_heads, n * T, d], n = heads / kv_heads."""
    return q.reshape(kv_heads, -1, q.shape[-1])


def _softmax(scores: mx.array, seen: mx.array) -> mx.array:
    """scores [kv_heads, n * T, C], mask [T, C] -> [kv_heads * n, T, C]"""
    tokens, slots = seen.shape
    return mx.softmax(mx.where(seen, scores.reshape(-1, tokens, slots), -mx.inf), axis=-1, precise=True)
