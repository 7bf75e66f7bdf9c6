"""Activations as int8: what the integer linear layers read.

Blocks of 128 columns share a scale, max|x| / 127. Beside the codes go -64 * their sums over 16 and over 32 columns.
"""

from collections.abc import Callable
from typing import Any

import numba

from mistral_portable_numba.compiler.simd import (
    absolute,
    all_f32,
    fetch_add,
    get_i64,
    load_f32,
    max_lanes,
    maximum,
    nearest,
    put_f32,
    put_i32,
    store_i8,
    sum_i32,
)

__all__ = ["quantize_kernel"]


def quantize_kernel() -> Callable[..., Any]:
    """Arguments: counter, address of T, columns (of 32); then the addresses and strides of x, codes, scales, sums
    over 16 and sums over 32."""

    @numba.njit
    def quantize(x: Any, columns: Any, codes: Any, scales: Any, sums16: Any, sums32: Any) -> None:
        for first in range(0, columns, 128):
            last = min(first + 128, columns)
            largest = all_f32(0.0)
            for column in range(first, last, 16):
                largest = maximum(largest, absolute(load_f32(x + 4 * column)))
            most = max_lanes(largest)
            put_f32(scales + first // 32, most / 127.0)
            inverse = all_f32(127.0 / most if most > 1e-36 else 0.0)  # below, the quotient would be infinite
            for column in range(first, last, 32):
                low = nearest(load_f32(x + 4 * column) * inverse)
                high = nearest(load_f32(x + 4 * column + 64) * inverse)
                store_i8(codes + column, low)
                store_i8(codes + column + 16, high)
                a, b = sum_i32(low), sum_i32(high)
                put_i32(sums16 + column // 4, -64 * a)
                put_i32(sums16 + column // 4 + 4, -64 * b)
                put_i32(sums32 + column // 8, -64 * (a + b))

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, columns = get_i64(args), get_i64(get_i64(args + 8)), get_i64(args + 16)
        x, codes, scales = get_i64(args + 24), get_i64(args + 40), get_i64(args + 56)
        sums16, sums32 = get_i64(args + 72), get_i64(args + 88)
        while True:
            t = fetch_add(counter, 1)
            if t >= count:
                break
            quantize(
                x + t * get_i64(args + 32),
                columns,
                codes + t * get_i64(args + 48),
                scales + t * get_i64(args + 64),
                sums16 + t * get_i64(args + 80),
                sums32 + t * get_i64(args + 96),
            )

    return kernel
