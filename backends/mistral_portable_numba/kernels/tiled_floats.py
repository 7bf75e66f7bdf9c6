"""AMX's products of blocks of 32 columns, 32 columns at a time, whose sums are scaled in the order of `FloatScales`."""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.load_store import load_f32, load_i32, store_bytes, store_f32
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.tiles import byte_product
from mistral_portable_numba.compiler.simd.tokens import Tokens
from mistral_portable_numba.kernels.byte_tiles import load4, load6, part_of_prefetch, zero_sums
from mistral_portable_numba.kernels.formats import Format
from mistral_portable_numba.layouts import activation_sums, linear_record

__all__ = ["scaled_by_floats"]

_each = Tokens(1)
zeros, load_one, store_one = _each.zeros, _each.load_each, _each.store_each
scale_ints, fma_one, add_scaled = _each.scale_ints, _each.fma_one, _each.add_scaled


def scaled_by_floats(fmt: Format) -> tuple[Callable[..., Any], ...]:
    """The functions of `tiled_products`: take_apart, factors_of, multiply and row.

    Scratch has a record for each pair of blocks: codes less the zero point, scales and offsets.
    """
    layout, zero = fmt.layout, fmt.zero
    codes, scale, offset = fmt.codes, fmt.scale, fmt.offset or fmt.scale
    has_offset, tile_bytes, record = layout.offset, 16 * layout.bytes, linear_record(layout)
    u_sub, fetch = activation_sums(1, 32, False).itemsize, part_of_prefetch(4 * tile_bytes, 4)
    add0, add1, add2, add3 = (byte_product(tile, 4, 6, signed=True) for tile in range(4))

    @inlined
    def put(p: Any, at: Any) -> None:
        for k in range(8):
            store_bytes(at + 128 * k, codes(p, 0, k) - zero if zero else codes(p, 0, k))
        store_f32(at + 1024, scale(p, 0, 0))
        if has_offset:
            store_f32(at + 1152, offset(p, 0, 0))

    @inlined
    def put_coming(coming: Any, slot: Any) -> None:
        p, _, subs, at = coming
        if slot < subs:
            put(p + 2 * tile_bytes * slot, at + record * slot)

    @inlined
    def take_apart(coming: Any) -> None:
        put_coming(coming, 0)
        put_coming(coming, 1)
        put_coming(coming, 2)
        put_coming(coming, 3)

    @inlined
    def factors_of(at: Any, subs: Any) -> Any:
        at += 1024
        p, q, r = at + record * min(1, subs - 1), at + record * min(2, subs - 1), at + record * min(3, subs - 1)
        scales = load_f32(at), load_f32(p), load_f32(q), load_f32(r)
        if has_offset:
            return scales, (load_f32(at + 128), load_f32(p + 128), load_f32(q + 128), load_f32(r + 128))
        return scales, scales

    @inlined
    def add_sub(some: Any, ints: Any, factor: Any, least: Any, u: Any) -> Any:
        some = scale_ints(some, (load_i32(ints),), factor)
        return fma_one(some, least, u, 4) if has_offset else some

    @inlined
    def row(t: Any, factors: Any, before: Any) -> None:
        n, subs, ints, x_scale, u, out = before
        scales, offsets = factors
        own, v, step, to = ints + 64 * t, u + 4 * n + 4 * t, u_sub * n, out + 128 * t
        some = add_sub(zeros(), own, scales[0], offsets[0], v)
        if subs > 1:
            some = add_sub(some, own + 1024, scales[1], offsets[1], v + step)
        if subs > 2:
            some = add_sub(some, own + 2048, scales[2], offsets[2], v + 2 * step)
        if subs > 3:
            some = add_sub(some, own + 3072, scales[3], offsets[3], v + 3 * step)
        store_one(to, 0, add_scaled(load_one(to, 0), some, x_scale + 4 * t, 4))

    @inlined
    def between(slot: Any, factors: Any, before: Any, due: Any, coming: Any) -> None:
        """Do a quarter of what is done between products."""
        fetch(due, slot)
        if before[0] > 0:
            row(2 * slot, factors, before)
            row(2 * slot + 1, factors, before)
            if before[0] > 8:
                row(2 * slot + 8, factors, before)
                row(2 * slot + 9, factors, before)
        put_coming(coming, slot)

    @inlined
    def multiply(at: Any, subs: Any, n: Any, x: Any, factors: Any, before: Any, due: Any, coming: Any) -> None:
        zero_sums()
        load4(x, 64)
        load6(at, 128)
        add0()
        between(0, factors, before, due, coming)
        if subs > 1:
            load4(x + 32, 64)
            load6(at + record, 128)
            add1()
        between(1, factors, before, due, coming)
        if subs > 2:
            load4(x + 64 * n, 64)
            load6(at + 2 * record, 128)
            add2()
        between(2, factors, before, due, coming)
        if subs > 3:
            load4(x + 64 * n + 32, 64)
            load6(at + 3 * record, 128)
            add3()
        between(3, factors, before, due, coming)

    return take_apart, factors_of, multiply, row
