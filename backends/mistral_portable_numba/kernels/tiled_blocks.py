"""Linear layers over quantized weights for many tokens, by AMX.

The left factor is up to 16 tokens, the right one a tile of weights, so that in a tile of sums, too, a lane is a row.
Some columns of a pair of tiles are unpacked to scratch, for all tokens. Integers are exact, and floats are added in the
order of `FloatScales` and `IntegerScales`, so the bits are theirs.
"""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.lanes import all_f32
from mistral_portable_numba.compiler.simd.load_store import (
    load_f32,
    load_i32,
    prefetch,
    prefetch_first,
    store_bytes,
    store_f32,
    store_i32,
)
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.tiles import (
    begin_tiles,
    byte_product,
    end_tiles,
    load_tile,
    store_tile,
    zero_tile,
)
from mistral_portable_numba.compiler.simd.tokens import Tokens
from mistral_portable_numba.compiler.simd.words import products_in_bytes, times_words
from mistral_portable_numba.kernels.formats import Format
from mistral_portable_numba.kernels.tile_sizes import write_sizes
from mistral_portable_numba.layouts import (
    BLOCK_TOKENS,
    CHUNK,
    SHARE,
    TILED_GROUP,
    TILED_SUMS,
    activation_sums,
    linear_record,
    split_record,
)

__all__ = ["tiled_products"]

# Tiles: see `tile_sizes.py`.
zero0, zero1, zero2, zero3 = (zero_tile(tile) for tile in range(4))
load4, load5, load6, load7 = (load_tile(tile) for tile in range(4, 8))
store0, store1, store2, store3 = (store_tile(tile) for tile in range(4))

_each = Tokens(1)
zeros, no_ints, load_one, store_one = _each.zeros, _each.no_ints, _each.load_each, _each.store_each
scale_ints, fma_one, add_scaled = _each.scale_ints, _each.fma_one, _each.add_scaled
pairs_of, add_words = _each.words(0), _each.add_words
add_whole, add_whole_and = _each.add_whole, _each.add_whole_and


@inlined
def zero_sums() -> None:
    zero0()
    zero1()
    zero2()
    zero3()


@inlined
def store_sums(at: Any) -> None:
    store0(at, 64)
    store1(at + 1024, 64)
    store2(at + 2048, 64)
    store3(at + 3072, 64)


def _rows(row: Callable[..., Any]) -> Callable[..., Any]:
    """The function (first, count, factors, sums) that calls `row` for the next `count` tokens; see `tiled_products`."""

    @inlined
    def rows(first: Any, count: Any, factors: Any, before: Any) -> None:
        for t in range(first, min(first + count, before[0])):
            row(t, factors, before)

    return rows


def _scaled_by_floats(fmt: Format) -> tuple[Callable[..., Any], ...]:
    """The functions of `tiled_products` for blocks of 32 columns: scratch has a record for each block, of codes less the
    zero point, scales and offsets."""
    layout, zero = fmt.layout, fmt.zero
    codes, scale, offset = fmt.codes, fmt.scale, fmt.offset or fmt.scale
    has_offset, tile_bytes, record = layout.offset, 16 * layout.bytes, linear_record(layout)
    u_sub, lines = activation_sums(1, 32, False).itemsize, tile_bytes // 64
    add0, add1, add2, add3 = (byte_product(tile, 4, 6, signed=True) for tile in range(4))

    @inlined
    def take_apart(p: Any, blocks: Any, at: Any, due: Any) -> None:
        for _ in range(blocks):
            for side in range(2):
                own, to = p + tile_bytes * side, at + 64 * side
                for k in range(8):
                    store_bytes(to + 128 * k, codes(own, 0, k) - zero if zero else codes(own, 0, k))
                store_f32(to + 1024, scale(own, 0, 0))
                if has_offset:
                    store_f32(to + 1152, offset(own, 0, 0))
                for line in range(lines):
                    prefetch(due + 64 * line)
                due += tile_bytes
            p += 2 * tile_bytes
            at += record

    @inlined
    def factors_of(at: Any, subs: Any) -> Any:
        at += 1024
        p, q, r = at + record * min(1, subs - 1), at + record * min(2, subs - 1), at + record * min(3, subs - 1)
        scales = load_f32(at), load_f32(p), load_f32(q), load_f32(r)
        return (scales, (load_f32(at + 128), load_f32(p + 128), load_f32(q + 128), load_f32(r + 128))) if has_offset else (scales, scales)

    @inlined
    def add_sub(some: Any, ints: Any, factor: Any, least: Any, u: Any) -> Any:
        some = scale_ints(some, (load_i32(ints),), factor)
        return fma_one(some, least, u, 4) if has_offset else some

    @inlined
    def row(t: Any, factors: Any, before: Any) -> None:
        n, subs, ints, x_scale, u, out, due, due_out = before
        scales, offsets = factors
        own, v, step, to = ints + 64 * t, u + 4 * n + 4 * t, u_sub * n, out + 128 * t
        prefetch_first(due + 64 * t)
        prefetch_first(due_out + 128 * t)
        some = add_sub(zeros(), own, scales[0], offsets[0], v)
        if subs > 1:
            some = add_sub(some, own + 1024, scales[1], offsets[1], v + step)
        if subs > 2:
            some = add_sub(some, own + 2048, scales[2], offsets[2], v + 2 * step)
        if subs > 3:
            some = add_sub(some, own + 3072, scales[3], offsets[3], v + 3 * step)
        store_one(to, 0, add_scaled(load_one(to, 0), some, x_scale + 4 * t, 4))

    rows = _rows(row)

    @inlined
    def multiply(at: Any, subs: Any, n: Any, x: Any, factors: Any, before: Any) -> None:
        zero_sums()
        load4(x, 64)
        load6(at, 128)
        add0()
        rows(0, 4, factors, before)
        if subs > 1:
            load4(x + 32, 64)
            load6(at + record, 128)
            add1()
        rows(4, 4, factors, before)
        if subs > 2:
            load4(x + 64 * n, 64)
            load6(at + 2 * record, 128)
            add2()
        rows(8, 4, factors, before)
        if subs > 3:
            load4(x + 64 * n + 32, 64)
            load6(at + 3 * record, 128)
            add3()
        rows(12, 4, factors, before)

    return take_apart, factors_of, multiply, rows


def _scaled_by_integers(fmt: Format) -> tuple[Callable[..., Any], ...]:
    """The functions of `tiled_products` for blocks of 256 columns: scratch has a record for 128 columns, whose codes are
    multiplied with the integers of their scales and cut in two bytes."""
    assert fmt.integers is not None
    layout, codes = fmt.layout, fmt.codes
    small, whole = fmt.integers.small, fmt.integers.whole
    least, minima = fmt.integers.least or whole, fmt.integers.minima or small
    two_steps, has_offset, tile_bytes, record = layout.step == 16, layout.offset, 16 * layout.bytes, split_record(layout)
    sums_bytes, u_pairs, lines = activation_sums(1, layout.step, False).itemsize, 8 * (32 // layout.step), -(-tile_bytes // 128)
    # Scales and codes that are not negative are multiplied in bytes, with 3 bits of a scale at a time: 31 x 7 < 256.
    halves = fmt.bits <= 5 and fmt.zero == 0 and not fmt.signed
    split, shift = products_in_bytes(fmt.zero, fmt.signed), 3 if halves else 8
    low0, low2 = (byte_product(tile, 4, 6, signed=False) for tile in (0, 2))
    high1, high3 = (byte_product(tile, 4, 7, signed=not halves) for tile in (1, 3))

    @inlined
    def put_dwords(p: Any, s: Any, first: Any, last: Any, factors: Any, at: Any, due: Any) -> None:
        low_factors, high_factors = factors & 0x70007, (factors >> 3) & 0x70007
        for k in range(first, last):
            low = high = codes(p, s, k)
            if halves:
                low, high = times_words(low, low_factors), times_words(high, high_factors)
            else:
                low, high = split(low, factors)
            store_bytes(at + 128 * k, low)
            store_bytes(at + 4096 + 128 * k, high)
            for line in range(8 * (s % 4) + k, lines, 32):
                prefetch(due + 64 * line)

    @inlined
    def put_sub(p: Any, s: Any, at: Any, due: Any) -> None:
        put_dwords(p, s, 0, 4, small(p, s, 0), at, due)
        put_dwords(p, s, 4, 8, small(p, s, 1 if two_steps else 0), at, due)

    @inlined
    def put_half(p: Any, s: Any, at: Any, due: Any) -> None:
        put_sub(p, s, at, due)
        put_sub(p, s + 1, at + 1024, due)
        put_sub(p, s + 2, at + 2048, due)
        put_sub(p, s + 3, at + 3072, due)
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
    def take_apart(p: Any, blocks: Any, at: Any, due: Any) -> None:
        for _ in range(blocks):
            for side in range(2):
                put_half(p, 0, at + 64 * side, due)
                put_half(p, 4, at + record + 64 * side, due + tile_bytes // 2)
                p += tile_bytes
                due += tile_bytes
            at += 2 * record

    @inlined
    def minima_of(at: Any) -> Any:
        a, b = load_i32(at), load_i32(at + 128)
        return (a, b, load_i32(at + 256), load_i32(at + 384)) if two_steps else (a, b, a, b)

    @inlined
    def factors_of(at: Any, subs: Any) -> Any:
        d, e, f, g = load_f32(at + 8192), load_f32(at + 8256), load_f32(at + 8192), load_f32(at + 8256)
        if has_offset:
            f, g = load_f32(at + 8320), load_f32(at + 8384)
            return (d, f), (e, g), minima_of(at + 8448), minima_of(at + 8512)
        return (d, f), (e, g), (no_ints()[0][0],) * 4, (no_ints()[0][0],) * 4

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
        n, subs, ints, x_scale, u, out, due, due_out = before
        d, e, left, right = factors
        own, v, step, to = ints + 64 * t, u + u_pairs * n + 4 * t, sums_bytes * n, out + 128 * t
        prefetch_first(due + 128 * t)
        prefetch_first(due + 128 * t + 64)
        prefetch_first(due_out + 128 * t)
        add_side(own, d, left, to, x_scale + 4 * t, v, step)
        add_side(own + 2048, e, right, to + 64, x_scale + 4 * t, v, step)

    rows = _rows(row)

    @inlined
    def half(at: Any, row: Any, factors: Any, before: Any) -> None:
        load6(at, 128)
        low0()
        rows(row, 2, factors, before)
        load7(at + 4096, 128)
        high1()
        rows(row + 2, 2, factors, before)
        load6(at + 64, 128)
        low2()
        rows(row + 4, 2, factors, before)
        load7(at + 4160, 128)
        high3()
        rows(row + 6, 2, factors, before)

    @inlined
    def multiply(at: Any, subs: Any, n: Any, x: Any, factors: Any, before: Any) -> None:
        zero_sums()
        load4(x, 64)
        half(at, 0, factors, before)
        load4(x + 64 * n, 64)
        half(at + 2048, 8, factors, before)

    return take_apart, factors_of, multiply, rows


def tiled_products(fmt: Format) -> Any:
    """The function that multiplies some pairs of tiles with more than FEW_TILED tokens, chunk after chunk of columns.

    Its arguments: the pairs' address, their number, blocks in a row, tokens, then the addresses and the bytes per token
    of activations, of their sums and of out, and scratch. It is made of two functions:

    take_apart(p, blocks, at, due): unpack blocks of a pair to scratch; prefetch from `due` on.
    factors_of(at, subs): the factors that scale the sums of `subs` times 32 columns, at most 128.
    multiply(at, subs, n, x, factors, before): multiply these columns with n tokens, in tiles 0 to 3, and meanwhile scale
    the sums before, as `rows` does: AMX and the vector units work side by side only where their instructions alternate.
    rows(first, count, factors, before): scale sums of some tokens. before: (tokens, subs, address of the sums, of the
    activations' scales and sums, of float32 [tokens, 2, 16] to which they are added).
    The last three do so for a tile of the pair with blocks of 32 columns, for both with blocks of 256.
    """
    layout, tile_bytes, large = fmt.layout, 16 * fmt.layout.bytes, fmt.layout.columns == 256
    take_apart, factors_of, multiply, rows = (_scaled_by_integers if large else _scaled_by_floats)(fmt)
    columns, chunk_blocks, size = layout.columns, 1 if large else CHUNK // 32, 64 if large else 32
    subs_of, u_sub = columns // 32, activation_sums(1, layout.step, False).itemsize
    sides, record = (1, split_record(layout)) if large else (2, 4 * linear_record(layout))

    @inlined
    def of_chunk(
        unpacked: Any, sub: Any, subs: Any, tokens: Any, x: Any, xs: Any, codes: Any, u: Any, us: Any, scratch: Any, to: Any
    ) -> None:
        """Multiply what was unpacked, `subs` times 32 columns from `sub` on, with all tokens, and add it to `to`.

        codes: bytes of a token's codes.
        """
        each, last, ints = (subs + 3) // 4, tokens % TILED_GROUP, scratch + 128
        factors, before = factors_of(unpacked, 1), (0, 4, ints, x, u, to, x, to)
        for first in range(0, tokens, TILED_GROUP):
            n, group = min(TILED_GROUP, tokens - first), x + first * xs
            if n == last and tokens > last:
                begin_tiles(scratch + 64)
            for r in range(each):
                some, place = min(4, subs - 4 * r), sub + 4 * r
                for side in range(sides):
                    own = unpacked + record * r + 64 * side
                    multiply(own, some, n, group + 32 * n * place, factors, before)
                    store_sums(ints)
                    scales, sums = group + n * (codes + place), u + first * us + u_sub * n * place
                    its_to = to + 128 * first + 64 * side
                    due = group + TILED_GROUP * xs + 512 * place + 1024 * side
                    due_out = its_to + 128 * TILED_GROUP + (64 if sides == 1 and r % 2 else 0)
                    factors, before = factors_of(own, some), (n, some, ints, scales, sums, its_to, due, due_out)
        rows(0, TILED_GROUP, factors, before)
        if last > 0 and tokens > last:
            begin_tiles(scratch)

    @inlined
    def products(
        p: Any, pairs: Any, blocks: Any, count: Any, x: Any, xs: Any, u: Any, us: Any, out: Any, os: Any, scratch: Any
    ) -> None:
        row_bytes, codes = blocks * tile_bytes, 128 * ((blocks * columns + 127) // 128)
        sums = scratch + TILED_SUMS
        unpacked = sums + 128 * SHARE * BLOCK_TOKENS
        write_sizes(scratch, TILED_GROUP, size)
        for t in range(0, count, BLOCK_TOKENS):
            tokens, own, its_u = min(BLOCK_TOKENS, count - t), x + t * xs, u + t * us
            write_sizes(scratch + 64, tokens % TILED_GROUP, size)
            begin_tiles(scratch if tokens >= TILED_GROUP else scratch + 64)
            for first in range(0, blocks, chunk_blocks):
                some = min(chunk_blocks, blocks - first)
                for pair in range(pairs):
                    at, to = p + 2 * (row_bytes * pair + tile_bytes * first), sums + 128 * BLOCK_TOKENS * pair
                    due = at + 2 * row_bytes if pair + 1 < pairs else p + 2 * tile_bytes * (first + some)
                    take_apart(at, some, unpacked, due)
                    if first == 0:
                        for row in range(2 * tokens):
                            store_f32(to + 64 * row, all_f32(0.0))
                    of_chunk(unpacked, first * subs_of, some * subs_of, tokens, own, xs, codes, its_u, us, scratch, to)
            for pair in range(pairs):
                for row in range(tokens):
                    at, to = sums + 128 * (BLOCK_TOKENS * pair + row), out + (t + row) * os + 128 * pair
                    store_f32(to, load_f32(at))
                    store_f32(to + 64, load_f32(at + 64))
        end_tiles()

    return products
