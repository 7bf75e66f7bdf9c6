"""AMX's products of blocks of 256 columns, 64 columns at a time, in integers whose order does not matter.

Codes are multiplied with the integers of their scales and cut in two bytes. So for 128 columns there are two sums of
products, of low and of high bytes; joined they are what `IntegerScales` has before it multiplies with d.
"""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.load_store import (
    load_f32,
    load_i32,
    store_bytes,
    store_f32,
    store_i32,
)
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.tiles import byte_product
from mistral_portable_numba.compiler.simd.tokens import Tokens
from mistral_portable_numba.compiler.simd.words import products_in_bytes, times_words
from mistral_portable_numba.kernels.byte_tiles import load4, load6, load7, part_of_prefetch, zero_sums
from mistral_portable_numba.kernels.formats import Format
from mistral_portable_numba.layouts import activation_sums

__all__ = ["scaled_by_integers"]

_each = Tokens(1)
no_ints, load_one, store_one, pairs_of = _each.no_ints, _each.load_each, _each.store_each, _each.words(0)
add_words, add_whole, add_whole_and = _each.add_words, _each.add_whole, _each.add_whole_and


def scaled_by_integers(fmt: Format) -> tuple[Callable[..., Any], ...]:
    """The functions of `tiled_products`: take_apart, factors_of, multiply and row.

    Scratch has a record for 128 columns of a pair (`layouts.split_record`).
    """
    assert fmt.integers is not None
    layout, codes = fmt.layout, fmt.codes
    small, whole = fmt.integers.small, fmt.integers.whole
    least, minima = fmt.integers.least or whole, fmt.integers.minima or small
    two_steps, has_offset = layout.step == 16, layout.offset
    tile_bytes, sums_bytes = 16 * layout.bytes, activation_sums(1, layout.step, False).itemsize
    u_pairs, fetch = 8 * (32 // layout.step), part_of_prefetch(tile_bytes, 8)
    # Scales and codes that are not negative are multiplied in bytes, with 3 bits of a scale at a time: 31 x 7 < 256.
    halves = fmt.bits <= 5 and fmt.zero == 0 and not fmt.signed
    split, shift = products_in_bytes(fmt.zero, fmt.signed), 3 if halves else 8
    low0, low2 = (byte_product(tile, 4, 6, signed=False) for tile in (0, 2))
    high1, high3 = (byte_product(tile, 4, 7, signed=not halves) for tile in (1, 3))

    @inlined
    def put_part(p: Any, s: Any, part: Any, at: Any) -> None:
        """Unpack four dwords, an eighth of 128 columns. s and part are constants, so LLVM folds the shifts."""
        sub, first = part // 2, 4 * (part % 2)
        factors = small(p, s + sub, part % 2 if two_steps else 0)
        low_factors, high_factors = factors & 0x70007, (factors >> 3) & 0x70007
        for k in range(first, first + 4):
            low = high = codes(p, s + sub, k)
            if halves:
                low, high = times_words(low, low_factors), times_words(high, high_factors)
            else:
                low, high = split(low, factors)
            store_bytes(at + 1024 * sub + 128 * k, low)
            store_bytes(at + 4096 + 1024 * sub + 128 * k, high)

    @inlined
    def put_factors(p: Any, s: Any, at: Any) -> None:
        store_f32(at + 8192, whole(p))
        if has_offset:
            store_f32(at + 8320, least(p))
            store_i32(at + 8448, minima(p, s))
            if two_steps:
                store_i32(at + 8576, minima(p, s + 1))
                store_i32(at + 8704, minima(p, s + 2))
                store_i32(at + 8832, minima(p, s + 3))
            else:
                store_i32(at + 8576, minima(p, s + 2))

    @inlined
    def put_slot(p: Any, s: Any, slot: Any, at: Any) -> None:
        """Unpack an eighth of 128 columns of a pair."""
        put_part(p, s, slot, at)
        put_part(p + tile_bytes, s, slot, at + 64)
        if slot == 7:
            put_factors(p, s, at)
            put_factors(p + tile_bytes, s, at + 64)

    @inlined
    def put_coming(coming: Any, slot: Any) -> None:
        p, chunk, _, at = coming
        if p != 0:
            if chunk % 2 == 0:
                put_slot(p, 0, slot, at)
            else:
                put_slot(p, 4, slot, at)

    @inlined
    def take_apart(coming: Any) -> None:
        put_coming(coming, 0)
        put_coming(coming, 1)
        put_coming(coming, 2)
        put_coming(coming, 3)
        put_coming(coming, 4)
        put_coming(coming, 5)
        put_coming(coming, 6)
        put_coming(coming, 7)

    @inlined
    def minima_of(at: Any) -> Any:
        a, b = load_i32(at), load_i32(at + 128)
        return (a, b, load_i32(at + 256), load_i32(at + 384)) if two_steps else (a, b, a, b)

    @inlined
    def factors_of(at: Any, subs: Any) -> Any:
        d, e = load_f32(at + 8192), load_f32(at + 8256)
        if has_offset:
            f, g = load_f32(at + 8320), load_f32(at + 8384)
            return (d, f), (e, g), minima_of(at + 8448), minima_of(at + 8512)
        return (d, d), (e, e), 0, 0

    @inlined
    def add_minima(least: Any, u: Any, step: Any) -> Any:
        """The sums of inputs times the integers of the offsets of one tile."""
        few = add_words(no_ints(), pairs_of(u), least[0], least[0])
        if two_steps:
            few = add_words(few, pairs_of(u + step), least[1], least[1])
            few = add_words(few, pairs_of(u + 2 * step), least[2], least[2])
            few = add_words(few, pairs_of(u + 3 * step), least[3], least[3])
        else:
            few = add_words(few, pairs_of(u + 2 * step), least[1], least[1])
        return few[0]

    @inlined
    def add_side(ints: Any, d: Any, least: Any, to: Any, x_scale: Any, u: Any, step: Any) -> None:
        whole_sum = (load_i32(ints) + (load_i32(ints + 1024) << shift),)
        if has_offset:
            total = add_whole_and(load_one(to, 0), whole_sum, d[0], add_minima(least, u, step), d[1], x_scale, 4)
        else:
            total = add_whole(load_one(to, 0), whole_sum, d[0], x_scale, 4)
        store_one(to, 0, total)

    @inlined
    def row(t: Any, factors: Any, before: Any) -> None:
        n, _, ints, x_scale, u, out = before
        d, e, left, right = factors
        own, v, step, to = ints + 64 * t, u + u_pairs * n + 4 * t, sums_bytes * n, out + 128 * t
        add_side(own, d, left, to, x_scale + 4 * t, v, step)
        add_side(own + 2048, e, right, to + 64, x_scale + 4 * t, v, step)

    @inlined
    def between(slot: Any, factors: Any, before: Any, due: Any, coming: Any) -> None:
        """Do an eighth of what is done between products."""
        fetch(due, slot)
        if before[0] > 0:
            row(slot, factors, before)
            if before[0] > 8:
                row(slot + 8, factors, before)
        put_coming(coming, slot)

    @inlined
    def half(at: Any, slot: Any, factors: Any, before: Any, due: Any, coming: Any) -> None:
        load6(at, 128)
        low0()
        between(slot, factors, before, due, coming)
        load7(at + 4096, 128)
        high1()
        between(slot + 1, factors, before, due, coming)
        load6(at + 64, 128)
        low2()
        between(slot + 2, factors, before, due, coming)
        load7(at + 4160, 128)
        high3()
        between(slot + 3, factors, before, due, coming)

    @inlined
    def multiply(at: Any, subs: Any, n: Any, x: Any, factors: Any, before: Any, due: Any, coming: Any) -> None:
        zero_sums()
        load4(x, 64)
        half(at, 0, factors, before, due, coming)
        load4(x + 64 * n, 64)
        half(at + 2048, 4, factors, before, due, coming)

    return take_apart, factors_of, multiply, row
