"""Quantization of activations to int8, the input of integer linears (`layouts.activation_block`).

Blocks of 128 columns share a scale, max|x| / 127.
"""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.convert import nearest
from mistral_portable_numba.compiler.simd.get_put import get_i64, put_f32, put_i16, put_i32
from mistral_portable_numba.compiler.simd.lanes import absolute, all_f32, maximum
from mistral_portable_numba.compiler.simd.load_store import load_f32, store_i8_apart
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.reduce import first_pairs, max_lanes, sum_i32
from mistral_portable_numba.kernels.registry import Factory
from mistral_portable_numba.layouts import FEW_TILED, START_ZEROS, activation_block, activation_sums, token_group

__all__ = ["KERNELS", "quantize_kernel"]

_group_of = inlined(token_group)
_BLOCK = activation_block(1).itemsize
_ZERO32, _ZERO16 = START_ZEROS[32], START_ZEROS[16]
_PIECE = 8


def quantize_kernel(isa: Isa) -> Callable[..., Any]:
    """The kernel that quantizes rows of x.

    Arguments: counter, address of T, columns (a multiple of 32), x, bytes between its rows; then the address and the
    bytes per token of the blocks, of the sums over 32 and of the sums over 16.
    A piece of work is 8 blocks of a group.
    """
    most, words, tiles = isa.tokens, isa.words, isa.tiles
    of32, of16 = (activation_sums(1, step, words).itemsize for step in (32, 16))

    @inlined
    def put_sums(low: Any, high: Any, sums32: Any, sums16: Any, group: Any, sub: Any) -> None:
        """Store the sums of 32 columns, which begin at column 32 * sub."""
        a, b = sum_i32(low), sum_i32(high)
        if words:
            e, f = sum_i32(first_pairs(low)), sum_i32(first_pairs(high))
            put_i16(sums32, -_ZERO32 * (e + f))
            put_i16(sums32 + 2, -_ZERO32 * (a + b - e - f))
            put_i16(sums16, -_ZERO16 * e)
            put_i16(sums16 + 2, -_ZERO16 * (a - e))
            put_i16(sums16 + 4 * group, -_ZERO16 * f)
            put_i16(sums16 + 4 * group + 2, -_ZERO16 * (b - f))
        else:
            put_i32(sums32, -_ZERO32 * (a + b))
            put_i32(sums16, -_ZERO16 * a)
            put_i32(sums16 + 4 * group, -_ZERO16 * b)
        put_i16(sums32 + 8 * group - of32 * group * (sub & 1) + 2 * (sub & 1), a + b)
        put_i16(sums16 + 16 * group, a)
        put_i16(sums16 + 16 * group + 2, b)
        put_f32(sums32 + 4 * group, a + b)
        put_f32(sums16 + 8 * group, a)
        put_f32(sums16 + 12 * group, b)

    @inlined
    def quantize(
        x: Any, columns: Any, codes: Any, apart: Any, scale: Any, sums32: Any, sums16: Any, group: Any
    ) -> None:
        """Quantize up to 128 columns of a token in a group.

        Its first dword of codes is at `codes`, the next one `apart` bytes behind it.
        """
        largest = all_f32(0.0)
        for column in range(0, columns, 16):
            largest = maximum(largest, absolute(load_f32(x + 4 * column)))
        bound = max_lanes(largest)
        put_f32(scale, bound / 127.0)
        inverse = all_f32(127.0 / bound if bound > 1e-36 else 0.0)  # below, the quotient would be infinite
        for sub in range(columns // 32):
            low, high = nearest(load_f32(x) * inverse), nearest(load_f32(x + 64) * inverse)
            at = codes + 64 * group * (sub // 2) + 8 * apart * (sub % 2)
            store_i8_apart(at, apart, low)
            store_i8_apart(at + 4 * apart, apart, high)
            put_sums(low, high, sums32, sums16, group, sub)
            x += 128
            sums32 += of32 * group
            sums16 += of16 * group

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, columns = get_i64(args), get_i64(get_i64(args + 8)), get_i64(args + 16)
        x, xs, codes, cs = get_i64(args + 24), get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        sums32, s32, sums16, s16 = get_i64(args + 56), get_i64(args + 64), get_i64(args + 72), get_i64(args + 80)
        group, tiled = _group_of(count, most, tiles), tiles and count > FEW_TILED
        pieces = (columns + 128 * _PIECE - 1) // (128 * _PIECE)
        work = (count + group - 1) // group * pieces
        while True:
            piece = fetch_add(counter, 1)
            if piece >= work:
                break
            first, begin = piece // pieces * group, piece % pieces * 128 * _PIECE
            own = min(group, count - first)
            n = own if tiled else group
            for column in range(begin, min(begin + 128 * _PIECE, columns), 128):
                block, some = column // 128, min(128, columns - column)
                a = sums32 + first * s32 + column // 32 * of32 * n
                b = sums16 + first * s16 + column // 32 * of16 * n
                if tiled:
                    c, apart, token = codes + first * cs + 128 * n * block, 4, 64
                    scale = codes + first * cs + n * (128 * ((columns + 127) // 128) + 4 * block)
                else:
                    c, apart, token = codes + first * cs + _BLOCK * n * block, 4 * n, 4
                    scale = c + 128 * n
                for t in range(own):
                    y = x + (first + t) * xs + 4 * column
                    quantize(y, some, c + token * t, apart, scale + 4 * t, a + 4 * t, b + 4 * t, n)

    return kernel


KERNELS: dict[str, Factory] = {"quantize": quantize_kernel}
