"""One page of q8_0 in attention: integer products of its codes with four rows of queries, or of weights.

A row of queries, and a row of weights times the scales of 32 columns of values, are rounded to 16 bits, 1/32512 of its
largest number a step: 1/256 of a step of the codes. Products and their sums are exact; `float(sum)` is the first that
is rounded.
"""

from typing import Any

from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.compiler.simd.byte_dots import as_signed
from mistral_portable_numba.compiler.simd.convert import nearest
from mistral_portable_numba.compiler.simd.get_put import get_f32, put_f32, put_i32
from mistral_portable_numba.compiler.simd.lanes import absolute, all_f32, keep_between, lane_numbers, weighed
from mistral_portable_numba.compiler.simd.load_store import load_bytes, load_f16, load_f32, prefetch, store_f32
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.reduce import sum_i32
from mistral_portable_numba.compiler.simd.sixteen_bits import Rows16, larger_positive, largest_positive
from mistral_portable_numba.compiler.simd.tokens import Tokens

__all__ = ["byte_rows", "put_byte_query"]

_MOST = 32512.0
"""The largest 16-bit number, 127 * 256, so that its high byte stays in -127..127 when the low one has a sign."""


def put_byte_query(words: bool) -> Any:
    """The function that stores a row of queries for `scores`. words: `Isa.words`."""
    put = Rows16(1, words=words).put

    @inlined
    def seen(x: Any, j: Any, scale: Any, head_dim: Any) -> Any:
        """The numbers j .. j + 15 of x times a scale, 0 beyond head_dim."""
        if j >= head_dim:
            return all_f32(0.0)
        return keep_between(load_f32(x + 4 * j) * scale, lane_numbers() + j, 0, head_dim - 1, 0.0)

    @inlined
    def put_query(x: Any, scale: Any, head_dim: Any, to: Any, width: Any) -> None:
        """Store head_dim numbers of x times a scale.

        At `to`: `width` bytes of halves, as many of the others, int32 sums of each 32 numbers, and what a step is
        worth (float32).
        """
        largest = all_f32(0.0)
        for j in range(0, head_dim, 16):
            largest = larger_positive(largest, absolute(seen(x, j, scale, head_dim)))
        bound = largest_positive(largest)
        inverse, sums = all_f32(_MOST) / all_f32(bound), to + 2 * width
        for j in range(0, width, 32):
            a = nearest(seen(x, j, scale, head_dim) * inverse)
            b = nearest(seen(x, j + 16, scale, head_dim) * inverse)
            put(to + j, width, a)
            put(to + j + 16, width, b)
            put_i32(sums + j // 8, sum_i32(a + b))
        put_f32(sums + width // 8, bound * (1.0 / _MOST) + (bound - bound))  # NaN if a number is infinite

    return put_query


def byte_rows(isa: Isa, ahead: int) -> tuple[Any, Any, Any]:
    """The functions of four rows that make scores, and that weigh values.

    ahead: bytes between what they read and what they prefetch; 0: they prefetch nothing.
    """
    wide = isa.tokens > 4  # whether there are registers for two vectors of codes times four rows
    count = 4 if wide or isa.words else 2
    rows, floats = Rows16(count, words=isa.words), Tokens(count)
    none, start, add_codes, add_bytes = rows.none, rows.start, rows.add_codes, rows.add_bytes
    add_times, add_scaled, put = rows.add_times, rows.add_scaled, rows.put_positive
    zeros, scaled, load_each, store_each = floats.zeros, floats.add_scaled, floats.load_each, floats.store_each
    lanes = 32 if wide else 16

    @inlined
    def fetch(address: Any, lines: Any, row: Any) -> None:
        """Prefetch a row's share of some lines."""
        for line in range(lines * row // 4, lines * (row + 1) // 4):
            prefetch(address + 64 * line)

    @inlined
    def fetch_keys(keys: Any, width: Any, row: Any) -> None:
        """Prefetch a row's share of the lines that `scores` leaves."""
        fetch(keys + ahead + 32 * width, 18 * width // 32, row)

    @inlined
    def scores(keys: Any, scales: Any, head_dim: Any, q: Any, qs: Any, out: Any) -> None:
        """out [4, 64] = 4 rows times the 64 keys of a page, of 32 columns at a time."""
        width = qs // 4
        for first in range(0, head_dim, 32):
            quads = (min(32, head_dim - first) + 3) // 4
            for part in range(0, 64, lanes):
                for row in range(0, 4, count):
                    numbers = q + row * qs
                    a = start(numbers + 2 * width + first // 8, qs)
                    b = a
                    for quad in range(quads):
                        if ahead and row == 0 and part % 32 == 0:
                            prefetch(keys + ahead + 32 * first + 16 * part + 64 * quad)
                        at, x = keys + 64 * first + 256 * quad + 4 * part, numbers + first + 4 * quad
                        a = add_codes(a, as_signed(load_bytes(at)), x, qs, width)
                        if wide:
                            b = add_codes(b, as_signed(load_bytes(at + 64)), x, qs, width)
                    to, scale = out + 256 * row + 4 * part, scales + 4 * first + 2 * part
                    store_each(to, 256, add_times(zeros() if first == 0 else load_each(to, 256), a, load_f16(scale)))
                    if wide:
                        to += 64
                        so_far = zeros() if first == 0 else load_each(to, 256)
                        store_each(to, 256, add_times(so_far, b, load_f16(scale + 32)))
        for row in range(4):
            step = get_f32(q + row * qs + 2 * width + width // 8)
            for part in range(0, 256, 64):
                store_f32(out + 256 * row + part, load_f32(out + 256 * row + part) * step)

    @inlined
    def put_weights(weights: Any, scales: Any, to: Any, step: Any) -> None:
        """Store the products of a row of weights [64] with the scales of values, and what a step of them is worth."""
        a, b = weighed(load_f16(scales), load_f32(weights)), weighed(load_f16(scales + 32), load_f32(weights + 64))
        c = weighed(load_f16(scales + 64), load_f32(weights + 128))
        d = weighed(load_f16(scales + 96), load_f32(weights + 192))
        bound = largest_positive(larger_positive(larger_positive(a, b), larger_positive(c, d)))
        inverse = all_f32(_MOST) / all_f32(bound)
        put(to, 64, nearest(a * inverse))
        put(to + 16, 64, nearest(b * inverse))
        put(to + 32, 64, nearest(c * inverse))
        put(to + 48, 64, nearest(d * inverse))
        put_f32(step, bound * (1.0 / _MOST))

    @inlined
    def weigh(
        values: Any, scales: Any, width: Any, weights: Any, room: Any, factors: Any, out: Any, os: Any, whole: Any
    ) -> None:
        """out [4, width] = out * factors + weights [4, 64] times the 64 values of a page.

        Hidden values have the weight 0. room: 1 KiB.
        """
        steps = room + 512
        for j in range(0, width, 32):
            for row in range(4):
                if ahead:
                    fetch(values + ahead + 68 * j, 18, row)
                put_weights(weights + 256 * row, scales + 4 * j, room + 128 * row, steps + 4 * row)
            for part in range(0, 32, lanes):
                for row in range(0, 4, count):
                    a = none()
                    b = a
                    for quad in range(16):
                        if ahead and row == 0 and part % 32 == 0:
                            prefetch(values + ahead + 68 * j + 64 * (18 + quad))
                        at, x = values + 64 * j + 128 * quad + 4 * part, room + 128 * row + 4 * quad
                        a = add_bytes(a, load_bytes(at), x, 128, 64)
                        if wide:
                            b = add_bytes(b, load_bytes(at + 64), x, 128, 64)
                    to, factor, step = out + row * os + 4 * (j + part), factors + 4 * row, steps + 4 * row
                    store_each(to, os, add_scaled(scaled(zeros(), load_each(to, os), factor, 4), a, step, 4))
                    if wide:
                        to += 64
                        store_each(to, os, add_scaled(scaled(zeros(), load_each(to, os), factor, 4), b, step, 4))

    return scores, weigh, fetch_keys
