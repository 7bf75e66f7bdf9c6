"""ggml's blocks as MLX's affine groups of 32 columns: weight = scale * code + bias, code an unsigned integer.

Exact where scale and bias are kept in float32. Those of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and IQ4_NL are exact in float16,
too (biases -8 d, -16 d and -128 d change only the exponent); those of Q4_K, Q5_K and IQ4_XS are products of 17 bits.
Source of the layouts: ggml `ggml-common.h`, `dequantize_row_*` in `ggml-quants.c`. Q2_K, Q3_K and Q6_K have groups of
16 columns, which no affine group of MLX holds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

__all__ = ["GROUP", "LAYOUTS", "Groups", "Layout", "pack"]

GROUP = 32
"""Columns of a group."""

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Groups:
    """Affine groups, n of them: codes uint8 [..., n, 32], scales and biases float32 [..., n]."""

    codes: mx.array
    scales: mx.array
    biases: mx.array


@dataclass(frozen=True)
class Layout:
    """A block type of ggml. bits: of a code. bytes: of a block. unpack: uint8 [..., bytes] -> the groups of a block."""

    bits: int
    bytes: int
    unpack: Callable[[mx.array], Groups]


def pack(codes: mx.array, bits: int) -> mx.array:
    """Pack codes uint8 [rows, columns] below 2^bits into uint32 [rows, columns * bits / 32], the lowest bits first.

    Eight codes take `bits` bytes: they are joined in an integer of 64 bits, whose lower bytes are kept.
    """
    rows = codes.shape[0]
    eights = codes.reshape(rows, -1, 8).astype(mx.uint64)
    words = eights[..., 0]
    for index in range(1, 8):
        words = words | (eights[..., index] << (bits * index))
    bytes_ = words[..., None].view(mx.uint8)[..., :bits]
    return mx.contiguous(bytes_).reshape(rows, -1).view(mx.uint32)


def _halves(blocks: mx.array, start: int, count: int) -> list[mx.array]:
    """Read `count` float16 numbers from byte `start` on, each as float32 [..., 1]."""
    numbers = mx.contiguous(blocks[..., start : start + 2 * count]).view(mx.float16).astype(mx.float32)
    return [numbers[..., index : index + 1] for index in range(count)]


def _nibbles(packed: mx.array) -> mx.array:
    """Unpack uint8 [..., 16] -> [..., 32]: the lower halves of the bytes, then the upper halves."""
    return mx.concatenate([packed & 15, packed >> 4], axis=-1)


def _fifth_bits(packed: mx.array) -> mx.array:
    """Unpack the fifth bits of 32 codes: uint8 [..., 4] -> [..., 32], 0 or 16."""
    bits = (packed[..., None] >> mx.arange(8, dtype=mx.uint8)) & 1
    return bits.reshape(*packed.shape[:-1], 32) << 4


def _one(codes: mx.array, scale: mx.array, bias: mx.array) -> Groups:
    """Make the Groups of a block that is one group."""
    return Groups(codes[..., None, :], scale, bias)


def _q4_0(blocks: mx.array) -> Groups:
    (d,) = _halves(blocks, 0, 1)
    return _one(_nibbles(blocks[..., 2:]), d, -8 * d)


def _q4_1(blocks: mx.array) -> Groups:
    d, m = _halves(blocks, 0, 2)
    return _one(_nibbles(blocks[..., 4:]), d, m)


def _q5_0(blocks: mx.array) -> Groups:
    (d,) = _halves(blocks, 0, 1)
    return _one(_nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6]), d, -16 * d)


def _q5_1(blocks: mx.array) -> Groups:
    d, m = _halves(blocks, 0, 2)
    return _one(_nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8]), d, m)


def _q8_0(blocks: mx.array) -> Groups:
    (d,) = _halves(blocks, 0, 1)
    return _one(blocks[..., 2:] ^ 128, d, -128 * d)  # two's complement + 128


def _iq4_nl(blocks: mx.array) -> Groups:
    (d,) = _halves(blocks, 0, 1)
    return _one(_iq4_codes(_nibbles(blocks[..., 2:])), d, -128 * d)


def _iq4_codes(indices: mx.array) -> mx.array:
    return mx.array([value + 128 for value in _IQ4], mx.uint8)[indices]


def _iq4_xs(blocks: mx.array) -> Groups:
    """A block is d, 8 x 2 high bits of scales, 8 x 4 low bits, 8 groups of 16 bytes."""
    (d,) = _halves(blocks, 0, 1)
    pairs = mx.arange(4, dtype=mx.uint8) * 2
    high = ((blocks[..., 2:4, None] >> pairs) & 3).reshape(*blocks.shape[:-1], 8)
    low = mx.stack([blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4], axis=-1).reshape(*blocks.shape[:-1], 8)
    scales = d * ((low | (high << 4)).astype(mx.float32) - 32)
    codes = _iq4_codes(_nibbles(blocks[..., 8:].reshape(*blocks.shape[:-1], 8, 16)))
    return Groups(codes, scales, -128 * scales)


def _k_scales(packed: mx.array) -> tuple[mx.array, mx.array]:
    """Unpack uint8 [..., 12] -> 8 scales and 8 minima of 6 bits, float32 [..., 8] each."""
    a, b, c = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = mx.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=-1)
    minima = mx.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=-1)
    return scales.astype(mx.float32), minima.astype(mx.float32)


def _k_nibbles(packed: mx.array) -> mx.array:
    """Unpack uint8 [..., 128] -> [..., 8, 32]: for each 32 bytes the lower halves, then the upper halves."""
    quarters = packed.reshape(*packed.shape[:-1], 4, 32)
    return mx.stack([quarters & 15, quarters >> 4], axis=-2).reshape(*packed.shape[:-1], 8, 32)


def _q4_k(blocks: mx.array) -> Groups:
    d, dmin = _halves(blocks, 0, 2)
    scales, minima = _k_scales(blocks[..., 4:16])
    return Groups(_k_nibbles(blocks[..., 16:]), d * scales, -(dmin * minima))


def _q5_k(blocks: mx.array) -> Groups:
    d, dmin = _halves(blocks, 0, 2)
    scales, minima = _k_scales(blocks[..., 4:16])
    fifth = (blocks[..., None, 16:48] >> mx.arange(8, dtype=mx.uint8)[:, None]) & 1  # bit j belongs to group j
    return Groups(_k_nibbles(blocks[..., 48:]) | (fifth << 4), d * scales, -(dmin * minima))


LAYOUTS = {
    "q4_0": Layout(4, 18, _q4_0),
    "q4_1": Layout(4, 20, _q4_1),
    "q5_0": Layout(5, 22, _q5_0),
    "q5_1": Layout(5, 24, _q5_1),
    "q8_0": Layout(8, 34, _q8_0),
    "iq4_nl": Layout(8, 18, _iq4_nl),
    "iq4_xs": Layout(8, 136, _iq4_xs),
    "q4_k": Layout(4, 144, _q4_k),
    "q5_k": Layout(5, 176, _q5_k),
}
"""Block types by ggml's name."""
