"""Quantization of float rows to ggml blocks: one kernel per format, 16 rows at a time.

The blocks of 16 rows are first made as a tile (see `layouts.py`), whose vectors `kernels/formats.py` reads. Codes are
stored like the columns: those of column i are the 16 int32 at c + 64i, and the smallest code is 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.convert import as_f16_bits, nearest
from mistral_portable_numba.compiler.simd.get_put import get_i16, get_i32, get_i64, put_i16, put_i32
from mistral_portable_numba.compiler.simd.lanes import absolute, all_f32, all_i32, maximum
from mistral_portable_numba.compiler.simd.load_store import (
    load_bf16,
    load_f16,
    load_f32,
    load_i32,
    store_f16,
    store_f32,
    store_i32,
    transpose4,
)
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.reduce import max_lanes
from mistral_portable_numba.kernels.registry import AnyIsa, Factory
from mistral_portable_numba.kernels.search import (
    Grid,
    affine_block,
    affine_super,
    integers,
    inverse_of,
    signed_block,
    signed_super,
    table,
)
from mistral_portable_numba.layouts import BLOCKS, ENCODE_SCRATCH, BlockLayout

__all__ = ["ENCODERS", "KERNELS", "Encoder", "encode_kernel"]

_SCALES, _SMALL, _TILE = 64 * 256, 64 * (256 + 32), 64 * (256 + 64)


@dataclass(frozen=True)
class Encoder:
    """How a format encodes a block.

    block(x, w, scales, small, tile): write the blocks of 16 rows to `tile`, first the dwords, then the float16 outside
    them. x: the block's columns as vectors, which are overwritten. w: importance of the columns. scales, small: scratch
    for 32 vectors each. It returns the largest number that became a float16; the blocks are finite if it is.
    """

    layout: BlockLayout
    block: Callable[..., Any]


def encode_kernel(encoder: Encoder) -> Callable[..., Any]:
    """The kernel that encodes rows of a matrix.

    Arguments: counter, rows, columns, source, bytes between its rows, its type (0: float32, 1: float16, 2: bfloat16);
    importance (float32, one per column), out, bytes between its rows, scratch (layouts.ENCODE_SCRATCH per thread), the
    address of an int64 that becomes 1 if a number is not finite or too large for the format.

    A piece of work is 16 rows.
    """
    encode, layout = encoder.block, encoder.layout
    columns_of_block, block_bytes, half, payload, dwords = (
        layout.columns,
        layout.bytes,
        layout.half,
        layout.payload,
        layout.dwords,
    )

    @inlined
    def take(source: Any, stride: Any, kind: Any, last: Any, x: Any, turned: Any) -> Any:
        """Load the columns of a block as vectors at x; rows beyond the last are copies of it.

        Returns zeros, or NaN if a number is NaN, infinite, or beyond 1e15, which no format can hold.
        """
        size, wrong = 4 if kind == 0 else 2, all_f32(0.0)
        for column in range(0, columns_of_block, 16):
            for row in range(16):
                at = source + min(row, last) * stride + column * size
                if kind == 0:
                    v = load_f32(at)
                elif kind == 1:
                    v = load_f16(at)
                else:
                    v = load_bf16(at)
                store_f32(turned + 64 * row, v)
                huge = v * 3e23
                wrong = wrong + (huge - huge)
            for row in range(0, 16, 4):
                for some in range(0, 16, 4):
                    transpose4(turned + 64 * row + 4 * some, 64, x + 64 * (column + some) + 4 * row, 64)
        return wrong

    @inlined
    def give(tile: Any, rows: Any, out: Any, stride: Any) -> None:
        for row in range(rows):
            at = out + row * stride
            for i in range(dwords):
                put_i32(at + payload + 4 * i, get_i32(tile + 64 * i + 4 * row))
            if half >= 0:
                put_i16(at + half, get_i16(tile + 64 * dwords + 2 * row))

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, rows, columns, source = get_i64(args), get_i64(args + 8), get_i64(args + 16), get_i64(args + 24)
        stride, kind, w, out = get_i64(args + 32), get_i64(args + 40), get_i64(args + 48), get_i64(args + 56)
        out_stride, scratch, flag = get_i64(args + 64), get_i64(args + 72) + thread * ENCODE_SCRATCH, get_i64(args + 80)
        scales, small, tile = scratch + _SCALES, scratch + _SMALL, scratch + _TILE
        size = 4 if kind == 0 else 2
        largest = all_f32(0.0)
        while True:
            first = 16 * fetch_add(counter, 1)
            if first >= rows:
                break
            for block in range(columns // columns_of_block):
                at = source + first * stride + block * columns_of_block * size
                wrong = take(at, stride, kind, rows - first - 1, scratch, scales)
                made = encode(scratch, w + 4 * columns_of_block * block, scales, small, tile)
                largest = maximum(largest, made + wrong)
                give(tile, min(16, rows - first), out + first * out_stride + block * block_bytes, out_stride)
        if not max_lanes(largest) < 65520.0:  # NaN, or too large for float16
            put_i32(flag, 1)

    return kernel


# --- codes ---------------------------------------------------------------------------------------------------------


def _coder(grid: Grid, n: int, subs: int, apart: int, affine: bool) -> Any:
    """(x, scales) -> None: replace the columns at x by their codes.

    Each of `subs` groups of n columns has a scale, and if `affine` an offset after it, `apart` bytes from the last.
    """
    snap, code = grid.snap, grid.code

    @inlined
    def put(x: Any, scales: Any) -> None:
        for j in range(subs):
            scale = load_f32(scales + apart * j)
            inverse = inverse_of(scale)
            base = load_f32(scales + apart * j + 64) if affine else all_f32(0.0)
            for i in range(n * j, n * j + n):
                store_i32(x + 64 * i, code(snap((load_f32(x + 64 * i) - base) * inverse)))

    return put


@inlined
def _four(c: Any) -> Any:
    """The codes of four columns, 0..255, as the bytes of a dword."""
    return load_i32(c) | (load_i32(c + 64) << 8) | (load_i32(c + 128) << 16) | (load_i32(c + 192) << 24)


@inlined
def _four_signed(c: Any) -> Any:
    """The codes of four columns, -128..127, as the bytes of a dword."""
    low = (load_i32(c) & 255) | ((load_i32(c + 64) & 255) << 8)
    return low | ((load_i32(c + 128) & 255) << 16) | (load_i32(c + 192) << 24)


@inlined
def _put_nibbles(c: Any, tile: Any) -> None:
    """Store 32 columns as 16 bytes: the low nibbles are the columns 0..15, the high ones 16..31."""
    for k in range(4):
        low, high = _four(c + 256 * k), _four(c + 256 * k + 64 * 16)
        store_i32(tile + 64 * k, (low & 0x0F0F0F0F) | ((high & 0x0F0F0F0F) << 4))


@inlined
def _fifth_bits(c: Any) -> Any:
    """Bit i is the fifth bit of column i of 32."""
    bits = (load_i32(c) >> 4) & 1
    for i in range(1, 32):
        bits = bits | (((load_i32(c + 64 * i) >> 4) & 1) << i)
    return bits


@inlined
def _two_halves(low: Any, high: Any) -> Any:
    """Two numbers as float16 in a dword."""
    return as_f16_bits(low) | (as_f16_bits(high) << 16)


# --- 32 columns ----------------------------------------------------------------------------------------------------

_NIBBLES, _FIVE_BITS, _BYTES = range(3)


def _encoder32(grid: Grid, search: Any, affine: bool, packing: int) -> Any:
    put_codes, dwords = _coder(grid, 32, 1, 0, affine), 8 if packing == _BYTES else 4

    @inlined
    def block(x: Any, w: Any, scales: Any, small: Any, tile: Any) -> Any:
        search(x, w, scales)
        put_codes(x, scales)
        made = absolute(load_f32(scales))
        if affine:
            store_i32(tile, _two_halves(load_f32(scales), load_f32(scales + 64)))
            made = maximum(made, absolute(load_f32(scales + 64)))
            tile += 64
        if packing == _FIVE_BITS:
            store_i32(tile, _fifth_bits(x))
            tile += 64
        if packing == _BYTES:
            for k in range(8):
                store_i32(tile + 64 * k, _four_signed(x + 256 * k))
        else:
            _put_nibbles(x, tile)
        if not affine:
            store_f16(tile + 64 * dwords, load_f32(scales))
        return made

    return block


# --- 256 columns ---------------------------------------------------------------------------------------------------


@inlined
def _small(small: Any, j: Any) -> Any:
    """The integer scale of a sub-block."""
    return nearest(load_f32(small + 64 * j))


@inlined
def _put_six_bits(small: Any, tile: Any) -> None:
    """Store eight scales and eight minima of 6 bits in 12 bytes (ggml `get_scale_min_k4`)."""
    first, second, third = all_i32(0), all_i32(0), all_i32(0)
    for j in range(4):
        scale, low = _small(small, 2 * j), _small(small, 2 * j + 1)
        later, lower = _small(small, 2 * j + 8), _small(small, 2 * j + 9)
        first = first | ((scale | ((later >> 4) << 6)) << (8 * j))
        second = second | ((low | ((lower >> 4) << 6)) << (8 * j))
        third = third | (((later & 15) | ((lower & 15) << 4)) << (8 * j))
    store_i32(tile, first)
    store_i32(tile + 64, second)
    store_i32(tile + 128, third)


@inlined
def _put_paired_nibbles(c: Any, tile: Any) -> None:
    """Store 256 columns as 128 bytes: of each 64 columns the first 32 are low nibbles, the others high ones."""
    for pair in range(4):
        for k in range(8):
            low, high = _four(c + 64 * (64 * pair + 4 * k)), _four(c + 64 * (64 * pair + 32 + 4 * k))
            store_i32(tile + 64 * (8 * pair + k), (low & 0x0F0F0F0F) | ((high & 0x0F0F0F0F) << 4))


@inlined
def _put_bit(c: Any, bit: Any, tile: Any) -> None:
    """256 columns as 32 bytes: bit s of byte l is one bit of the code of column 32s + l."""
    for k in range(8):
        bits = all_i32(0)
        for s in range(8):
            bits = bits | (((_four(c + 64 * (32 * s + 4 * k)) >> bit) & 0x01010101) << s)
        store_i32(tile + 64 * k, bits)


@inlined
def _put_two_bits(c: Any, tile: Any) -> None:
    """256 columns as 64 bytes: bits 2t, 2t + 1 of byte l of 32 are two bits of the code of column 32t + l of 128."""
    for n in range(2):
        for k in range(8):
            bits = all_i32(0)
            for t in range(4):
                bits = bits | ((_four(c + 64 * (128 * n + 32 * t + 4 * k)) & 0x03030303) << (2 * t))
            store_i32(tile + 64 * (8 * n + k), bits)


def _encoder_k45(top: int, tries: int, reach: float, rounds: int) -> Any:
    search = affine_super(top, 32, 8, 63, tries, reach, rounds)
    put_codes, five = _coder(integers(0, top, 0), 32, 8, 128, True), top > 15

    @inlined
    def block(x: Any, w: Any, scales: Any, small: Any, tile: Any) -> Any:
        d, m = search(x, w, scales, small)
        put_codes(x, scales)
        store_i32(tile, _two_halves(d, m))
        _put_six_bits(small, tile + 64)
        tile += 64 * 4
        if five:
            _put_bit(x, 4, tile)
            tile += 64 * 8
        _put_paired_nibbles(x, tile)
        return maximum(d, m)

    return block


def _encoder_k2(tries: int, reach: float, rounds: int) -> Any:
    search = affine_super(3, 16, 16, 15, tries, reach, rounds)
    put_codes = _coder(integers(0, 3, 0), 16, 16, 128, True)

    @inlined
    def block(x: Any, w: Any, scales: Any, small: Any, tile: Any) -> Any:
        d, m = search(x, w, scales, small)
        put_codes(x, scales)
        for k in range(4):
            bits = all_i32(0)
            for j in range(4):
                pair = _small(small, 2 * (4 * k + j)) | (_small(small, 2 * (4 * k + j) + 1) << 4)
                bits = bits | (pair << (8 * j))
            store_i32(tile + 64 * k, bits)
        _put_two_bits(x, tile + 64 * 4)
        store_i32(tile + 64 * 20, _two_halves(d, m))
        return maximum(d, m)

    return block


def _encoder_k3(tries: int, reach: float, rounds: int) -> Any:
    grid = integers(-4, 3, 4)
    search = signed_super(grid, 16, 16, -32, 31, tries, reach, rounds)
    put_codes = _coder(grid, 16, 16, 64, False)

    @inlined
    def block(x: Any, w: Any, scales: Any, small: Any, tile: Any) -> Any:
        d = search(x, w, scales, small)
        put_codes(x, scales)
        _put_bit(x, 2, tile)
        _put_two_bits(x, tile + 64 * 8)
        first, second, third = all_i32(0), all_i32(0), all_i32(0)
        for j in range(4):
            a, b = _small(small, j) + 32, _small(small, j + 4) + 32
            e, f = _small(small, j + 8) + 32, _small(small, j + 12) + 32
            first = first | (((a & 15) | ((e & 15) << 4)) << (8 * j))
            second = second | (((b & 15) | ((f & 15) << 4)) << (8 * j))
            high = (a >> 4) | ((b >> 4) << 2) | ((e >> 4) << 4) | ((f >> 4) << 6)
            third = third | (high << (8 * j))
        store_i32(tile + 64 * 24, first)
        store_i32(tile + 64 * 25, second)
        store_i32(tile + 64 * 26, third)
        store_f16(tile + 64 * 27, d)
        return absolute(d)

    return block


def _encoder_k6(tries: int, reach: float, rounds: int) -> Any:
    grid = integers(-32, 31, 32)
    search = signed_super(grid, 16, 16, -128, 127, tries, reach, rounds)
    put_codes = _coder(grid, 16, 16, 64, False)

    @inlined
    def block(x: Any, w: Any, scales: Any, small: Any, tile: Any) -> Any:
        d = search(x, w, scales, small)
        put_codes(x, scales)
        for n in range(2):
            for k in range(8):
                at = x + 64 * (128 * n + 4 * k)
                a, b, e, f = _four(at), _four(at + 64 * 32), _four(at + 64 * 64), _four(at + 64 * 96)
                store_i32(tile + 64 * (16 * n + k), (a & 0x0F0F0F0F) | ((e & 0x0F0F0F0F) << 4))
                store_i32(tile + 64 * (16 * n + 8 + k), (b & 0x0F0F0F0F) | ((f & 0x0F0F0F0F) << 4))
                low, high = (a >> 4) & 0x03030303, (b >> 4) & 0x03030303
                low, high = low | (high << 2), ((e >> 4) & 0x03030303) | (((f >> 4) & 0x03030303) << 2)
                store_i32(tile + 64 * (32 + 8 * n + k), low | (high << 4))
        for k in range(4):
            bits = all_i32(0)
            for j in range(4):
                bits = bits | ((_small(small, 4 * k + j) & 255) << (8 * j))
            store_i32(tile + 64 * (48 + k), bits)
        store_f16(tile + 64 * 52, d)
        return absolute(d)

    return block


def _encoder_iq4_xs(tries: int, reach: float, rounds: int) -> Any:
    search = signed_super(_IQ4, 32, 8, -32, 31, tries, reach, rounds)
    put_codes = _coder(_IQ4, 32, 8, 64, False)

    @inlined
    def block(x: Any, w: Any, scales: Any, small: Any, tile: Any) -> Any:
        d = search(x, w, scales, small)
        put_codes(x, scales)
        low, high = all_i32(0), all_i32(0)
        for s in range(8):
            scale = _small(small, s) + 32
            low, high = low | ((scale & 15) << (4 * s)), high | ((scale >> 4) << (2 * s))
        store_i32(tile, as_f16_bits(d) | (high << 16))
        store_i32(tile + 64, low)
        for s in range(8):
            _put_nibbles(x + 64 * 32 * s, tile + 64 * (2 + 4 * s))
        return absolute(d)

    return block


_IQ4 = table(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _signed32(grid: Grid, packing: int, tries: int, reach: float) -> Any:
    return _encoder32(grid, signed_block(grid, 32, tries, reach), False, packing)


def _affine32(top: int, packing: int, tries: int, reach: float) -> Any:
    return _encoder32(integers(0, top, 0), affine_block(top, 32, tries, reach), True, packing)


ENCODERS: dict[str, Encoder] = {
    "q4_0": Encoder(BLOCKS["q4_0"], _signed32(integers(-8, 7, 8), _NIBBLES, 13, 1.2)),
    "q4_1": Encoder(BLOCKS["q4_1"], _affine32(15, _NIBBLES, 5, 0.7)),
    "q5_0": Encoder(BLOCKS["q5_0"], _signed32(integers(-16, 15, 16), _FIVE_BITS, 13, 1.2)),
    "q5_1": Encoder(BLOCKS["q5_1"], _affine32(31, _FIVE_BITS, 5, 0.7)),
    "q8_0": Encoder(BLOCKS["q8_0"], _signed32(integers(-127, 127, 0), _BYTES, 5, 0.6)),
    "iq4_nl": Encoder(BLOCKS["iq4_nl"], _signed32(_IQ4, _NIBBLES, 9, 20.0)),
    "q2_k": Encoder(BLOCKS["q2_k"], _encoder_k2(5, 0.7, 1)),
    "q3_k": Encoder(BLOCKS["q3_k"], _encoder_k3(9, 1.0, 1)),
    "q4_k": Encoder(BLOCKS["q4_k"], _encoder_k45(15, 5, 0.7, 1)),
    "q5_k": Encoder(BLOCKS["q5_k"], _encoder_k45(31, 5, 0.7, 1)),
    "q6_k": Encoder(BLOCKS["q6_k"], _encoder_k6(7, 1.0, 1)),
    "iq4_xs": Encoder(BLOCKS["iq4_xs"], _encoder_iq4_xs(9, 20.0, 1)),
}
"""Encoders by the names of BLOCKS. The number of scales tried is odd, so that the plain scale is among them."""


KERNELS: dict[str, Factory] = {
    f"encode_{name}": AnyIsa(encode_kernel, (encoder,)) for name, encoder in ENCODERS.items()
}
