"""AMX's products of blocks of 32 columns, 32 columns at a time, whose sums are scaled in the order of `FloatScales`."""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.load_store import load_f32, load_i32, prefetch_first, store_bytes, store_f32
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
    def take_apart(p: Any, blocks: Any, at: Any) -> None:
        for _ in range(blocks):
            for side in range(2):
                own, to = p + tile_bytes * side, at + 64 * side
                for k in range(8):
                    store_bytes(to + 128 * k, codes(own, 0, k) - zero if zero else codes(own, 0, k))
                store_f32(to + 1024, scale(own, 0, 0))
                if has_offset:
                    store_f32(to + 1152, offset(own, 0, 0))
            p += 2 * tile_bytes
            at += record

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
        n, subs, ints, x_scale, u, out, due_x, due_out = before
        scales, offsets = factors
        own, v, step, to = ints + 64 * t, u + 4 * n + 4 * t, u_sub * n, out + 128 * t
        prefetch_first(due_x + 64 * t)
        prefetch_first(due_out + 128 * t)
        some = add_sub(zeros(), own, scales[0], offsets[0], v)
        if subs > 1:
            some = add_sub(some, own + 1024, scales[1], offsets[1], v + step)
        if subs > 2:
            some = add_sub(some, own + 2048, scales[2], offsets[2], v + 2 * step)
        if subs > 3:
            some = add_sub(some, own + 3072, scales[3], offsets[3], v + 3 * step)
        store_one(to, 0, add_scaled(load_one(to, 0), some, x_scale + 4 * t, 4))

    @inlined
    def rows(first: Any, count: Any, factors: Any, before: Any) -> None:
        for t in range(first, min(first + count, before[0])):
            row(t, factors, before)

    @inlined
    def multiply(at: Any, subs: Any, n: Any, x: Any, factors: Any, before: Any, due: Any) -> None:
        zero_sums()
        load4(x, 64)
        load6(at, 128)
        add0()
        fetch(due, 0)
        rows(0, 4, factors, before)
        if subs > 1:
            load4(x + 32, 64)
            load6(at + record, 128)
            add1()
        fetch(due, 1)
        rows(4, 4, factors, before)
        if subs > 2:
            load4(x + 64 * n, 64)
            load6(at + 2 * record, 128)
            add2()
        fetch(due, 2)
        rows(8, 4, factors, before)
        if subs > 3:
            load4(x + 64 * n + 32, 64)
            load6(at + 3 * record, 128)
            add3()
        fetch(due, 3)
        rows(12, 4, factors, before)

    return take_apart, factors_of, multiply, row
