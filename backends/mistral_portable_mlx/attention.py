"""Attention over a ring in the order of its slots: no key is moved, and a mask hides keys by their positions.

In shapes, B is the number of sequences, T that of the tokens of each, C that of the slots of a page, d is head_dim.
"""

from typing import NamedTuple, Protocol

import mlx.core as mx

from mistral_portable.boundary import Q8_0_BLOCK

__all__ = ["FloatFormat", "Format", "Q8Format", "Sizes", "mask"]

_FEW = 8  # up to so many queries are multiplied with 8-bit codes; for more, unpacking the codes once is cheaper
_FUSED = (64, 128)  # head_dims for which Metal has a kernel for any number of queries (MLX, has_fused_kernel)
_ENCODING = 24  # bytes for a number that becomes 8 bits: up to six float32 at once
_UNPACKING = 12  # bytes for one that becomes a float again


def mask(first: mx.array, positions: mx.array, held: mx.array) -> mx.array:
    """The attention mask, bool [B, 1, T, C]: whether a query sees the key in a slot.

    first: [B, T], the oldest position that a query sees (`cache.window.visible`). positions: [B, T], the query's own,
    the newest that it sees. held: [B, C], the position in each slot, negative in an empty one.
    """
    keys = held[:, None, None]
    return (keys >= first[:, None, :, None]) & (keys <= positions[:, None, :, None])


class Sizes(NamedTuple):
    """Sizes of a step, which its scratch follows from. tokens: T. rows: R, those that are requested. longest: the most
    tokens of a sequence. slots: by layer group, those of all its pages. pairs: by layer group, those of a query and a
    slot of its page. metal: whether the device is a Metal GPU.

    Example: sequences of 1 and 3 tokens, in pages of 256 and 512 slots: slots 768, pairs 256 + 3 * 512.
    """

    tokens: int
    rows: int
    longest: int
    slots: tuple[int, ...]
    pairs: tuple[int, ...]
    metal: bool


class Format(Protocol):
    """A storage format of keys and values."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of a page's arrays: first those of the keys, then as many of the values."""

    def empty(self, pages: int, heads: int, slots: int) -> list[mx.array]:
        """Make the arrays of pages, zeros, each [pages, heads, slots, n]."""

    def nbytes(self, heads: int, slots: int) -> int:
        """Bytes of a page in `empty`."""

    def encode(self, *kinds: mx.array) -> list[mx.array]:
        """Encode keys, or keys and values, each [T, kv_heads, d], as the stored arrays, each [T, kv_heads, n]."""

    def attend(self, q: mx.array, parts: list[mx.array], seen: mx.array, scale: float) -> mx.array:
        """Attention: q [B, heads, T, d], `parts` of B pages, mask `seen` [B, 1, T, C] -> [B, heads, T, d]."""

    def weights(self, q: mx.array, parts: list[mx.array], seen: mx.array, scale: float) -> mx.array:
        """The softmax of `attend`, [B, heads, T, C]."""

    def scratch_bytes(self, sizes: Sizes, group: int, heads: int, kv_heads: int) -> int:
        """The most bytes that `encode` and `attend` need at once in a layer of a group, beside what they take and
        return."""


class FloatFormat:
    """Keys and values in the dtype of the activations."""

    parts = ("keys", "values")

    def __init__(self, dtype: mx.Dtype, head_dim: int) -> None:
        self._dtype, self._head_dim = dtype, head_dim

    def empty(self, pages: int, heads: int, slots: int) -> list[mx.array]:
        return [mx.zeros((pages, heads, slots, self._head_dim), self._dtype) for _ in self.parts]

    def nbytes(self, heads: int, slots: int) -> int:
        return 2 * heads * slots * self._head_dim * self._dtype.size

    def encode(self, *kinds: mx.array) -> list[mx.array]:
        return list(kinds)

    def attend(self, q: mx.array, parts: list[mx.array], seen: mx.array, scale: float) -> mx.array:
        keys, values = parts
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=seen)

    def weights(self, q: mx.array, parts: list[mx.array], seen: mx.array, scale: float) -> mx.array:
        keys = parts[0].astype(mx.float32)[:, :, None]
        scores = _grouped(q.astype(mx.float32) * scale, keys.shape[1]) @ keys.swapaxes(3, 4)
        return _softmax(scores, seen).reshape(*q.shape[:3], -1)

    def scratch_bytes(self, sizes: Sizes, group: int, heads: int, kv_heads: int) -> int:
        return _scores(sizes, group, heads, kv_heads, self._head_dim, self._dtype.size)


class Q8Format:
    """Keys and values in 8 bits, with a float16 scale max|x| / 127 for each 32 numbers of a head ("q8_0" of Precision).

    MLX multiplies with affine groups, scale * code + bias, so codes are stored with 128 added, and the bias is
    -128 * scale. Heads are padded with zeros to whole groups, which changes neither scales nor scores.

    Each query head is multiplied on its own, also where several share a key head: MLX's kernels that divide a long sum
    are those for one row.
    """

    parts = ("keys", "keys.scales", "values", "values.scales")

    def __init__(self, dtype: mx.Dtype, head_dim: int, sums: mx.Dtype = mx.float32) -> None:
        """sums: the type in which the sum of values is returned, and so of the scales that it reads. Scores are always
        float32: a score of 40 in float16 is off by up to 0.016, and its weight by as much, relatively."""
        self._dtype, self._head_dim, self._sums = dtype, head_dim, sums
        self._groups = -(-head_dim // Q8_0_BLOCK)

    def empty(self, pages: int, heads: int, slots: int) -> list[mx.array]:
        kinds = [(self._groups * Q8_0_BLOCK // 4, mx.uint32), (self._groups, mx.float16)] * 2
        return [mx.zeros((pages, heads, slots, width), dtype) for width, dtype in kinds]

    def nbytes(self, heads: int, slots: int) -> int:
        return 2 * heads * slots * self._groups * (Q8_0_BLOCK + 2)

    def encode(self, *kinds: mx.array) -> list[mx.array]:
        heads = kinds[0].shape[1]
        x = kinds[0] if len(kinds) == 1 else mx.concatenate(list(kinds), axis=1)  # the kernels below once, not for each
        # Casts stand where they are fused with what follows: behind reshapes.
        blocks = self._padded(x).reshape(*x.shape[:-1], self._groups, Q8_0_BLOCK)
        scales = (mx.abs(blocks).max(axis=-1).astype(mx.float32) / 127).astype(mx.float16)
        steps = scales[..., None].astype(mx.float32)
        rounded = mx.clip(mx.round(blocks.astype(mx.float32) / steps), -127.0, 127.0)
        codes = mx.where(steps > 0.0, rounded, 0.0) + 128.0  # integers here would each cost a kernel that casts them
        both = codes.astype(mx.uint8).reshape(*x.shape[:-1], -1).view(mx.uint32), scales
        return [array[:, begin : begin + heads] for begin in range(0, x.shape[1], heads) for array in both]

    def attend(self, q: mx.array, parts: list[mx.array], seen: mx.array, scale: float) -> mx.array:
        if q.shape[2] > _FEW:
            keys, values = (self._unpacked(*parts[at : at + 2]) for at in (0, 2))
            return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=seen)
        codes, scales = parts[2:]
        out = _multiply(self._weights(q, parts, seen, scale).astype(self._sums), codes, scales, transpose=False)
        return out.reshape(*q.shape[:3], -1)[..., : self._head_dim].astype(self._dtype)

    def weights(self, q: mx.array, parts: list[mx.array], seen: mx.array, scale: float) -> mx.array:
        return self._weights(q, parts, seen, scale).reshape(*q.shape[:3], -1)

    def _weights(self, q: mx.array, parts: list[mx.array], seen: mx.array, scale: float) -> mx.array:
        """[B, kv_heads, n, T, C]"""
        codes, scales = parts[:2]
        queries = _grouped(self._padded(q), codes.shape[1]).astype(mx.float32) * scale
        return _softmax(_multiply(queries, codes, scales, transpose=True), seen)

    def _padded(self, x: mx.array) -> mx.array:
        missing = self._groups * Q8_0_BLOCK - self._head_dim
        return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x

    def _unpacked(self, codes: mx.array, scales: mx.array) -> mx.array:
        numbers = scales.astype(mx.float32)
        floats = mx.dequantize(codes, numbers, -128 * numbers, Q8_0_BLOCK, 8)
        return floats[..., : self._head_dim].astype(self._dtype)

    def scratch_bytes(self, sizes: Sizes, group: int, heads: int, kv_heads: int) -> int:
        width, slots = self._groups * Q8_0_BLOCK, sizes.slots[group] * kv_heads
        encoding = 2 * sizes.tokens * kv_heads * width * _ENCODING
        numbers = 4 * slots * self._groups * 4  # scales and offsets in float32, of keys and of values
        if sizes.longest > _FEW:
            unpacked = 2 * slots * width * (_UNPACKING + self._dtype.size)
            scores = _scores(sizes, group, heads, kv_heads, self._head_dim, self._dtype.size)
        else:
            # MLX's CPU kernel copies the codes for each head that shares them.
            unpacked = 0 if sizes.metal else 2 * sizes.slots[group] * heads * self._groups * (Q8_0_BLOCK + 8)
            scores = heads * (4 * 4 * sizes.pairs[group] + 3 * 4 * sizes.tokens * width)
        return encoding + numbers + unpacked + scores


def _scores(sizes: Sizes, group: int, heads: int, kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Bytes of what `mx.fast.scaled_dot_product_attention` makes: scores, masked scores, their softmax and a copy; or,
    where one kernel does it all, the parts of a long sum."""
    # Few queries are shared out among 32 threads with those of the heads that read the same keys; many are not.
    if sizes.metal and head_dim in _FUSED and (sizes.longest > _FEW or sizes.longest * heads <= 32 * kv_heads):
        parts = 128 * sizes.tokens + sizes.pairs[group] // 32 if sizes.longest <= _FEW else 0
        return parts * heads * (head_dim * itemsize + 8)
    return 4 * heads * sizes.pairs[group] * itemsize


def _multiply(x: mx.array, codes: mx.array, scales: mx.array, transpose: bool) -> mx.array:
    """Multiply x [B, kv_heads, n, T, m] with the codes of [B, kv_heads], in the type of x."""
    numbers = scales[:, :, None].astype(x.dtype)
    return mx.quantized_matmul(x, codes[:, :, None], numbers, -128 * numbers, transpose, Q8_0_BLOCK, 8)


def _grouped(q: mx.array, kv_heads: int) -> mx.array:
    """Group queries by their key/value head: [B, heads, T, d] -> [B, kv_heads, n, T, d], n = heads / kv_heads."""
    return q.reshape(q.shape[0], kv_heads, -1, *q.shape[2:])


def _softmax(scores: mx.array, seen: mx.array) -> mx.array:
    """scores [B, kv_heads, n, T, C], mask [B, 1, T, C] -> the softmax of those that are seen"""
    return mx.softmax(mx.where(seen[:, :, None], scores, -mx.inf), axis=-1, precise=True)
