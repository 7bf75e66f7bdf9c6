"""Linear layers over quantized weights: int4 times int8, one kernel per block format.

A lane is a row, so nothing is summed across lanes. One token is a stream through the weights, taken apart in registers. Several tokens
have two tiles at a time taken apart for all of them, into a scratch that stays in the cache.
"""

from collections.abc import Callable
from typing import Any

import numba

from mistral_portable_numba.kernels.formats import Format
from mistral_portable_numba.compiler.simd import (
    Tokens,
    all_f32,
    all_i32,
    dot4,
    dot4_signed,
    fetch_add,
    fma,
    get_i32,
    get_i64,
    load_f32,
    repeat4,
    repeat_f32,
    signed_zero,
    store_bytes,
    store_f32,
    to_f32,
)
from mistral_portable_numba.layouts import CHUNK, linear_record

__all__ = ["linear_kernel"]


def linear_kernel(fmt: Format, most_tokens: int) -> Callable[..., Any]:
    """The kernel of out = x @ weight.T for a format; it takes `most_tokens` tokens at a time.

    Arguments: counter, address of T, pairs of tiles, blocks per row, weights; then the addresses and strides (bytes
    between tokens) of out, of x's codes, scales and sums per step; scratch, its bytes per thread.
    """
    # Activations carry -64 * the sums of their columns. Unsigned codes are taken apart into codes with zero 64, so that
    # the sum is what the integers start with; signed ones have the zero of the instruction set, 0 or 128.
    codes, scale, offset = fmt.codes, fmt.scale, fmt.offset or fmt.scale
    layout, signed, zero = fmt.layout, fmt.signed, fmt.zero
    has_offset, tile_bytes, record = layout.offset, 16 * layout.bytes, linear_record(layout)
    subs, steps, chunk_blocks = layout.columns // 32, 32 // layout.step, CHUNK // layout.columns
    in_step = 8 // steps

    def sub_block(s: int) -> Any:
        """32 columns of a tile, s of a block, times one token; s is a constant, so LLVM can plan the bit fields."""

        @numba.njit
        def add(part: Any, p: Any, x: Any, sums: Any) -> Any:
            for h in range(steps):
                xsum = get_i32(sums + 4 * h)
                ints = all_i32((xsum * (signed_zero() if signed else zero)) >> 6)
                for k in range(in_step * h, in_step * (h + 1)):
                    w, four = codes(p, s, k), repeat4(x + 4 * k)
                    ints = dot4_signed(ints, w, four) if signed else dot4(ints, w, four)
                part = fma(to_f32(ints), scale(p, s, h), part)
                if has_offset:
                    part = fma(offset(p, s, h), all_f32(xsum * -0.015625), part)
            return part

        return add

    def half_block(s: int) -> Any:
        """128 columns of a tile, from sub-block s on, times one token."""
        a, b, c, d = (sub_block(min(i, subs - 1)) for i in range(s, s + 4))

        @numba.njit
        def add(p: Any, x: Any, sums: Any) -> Any:
            part = a(all_f32(0.0), p, x, sums)
            part = b(part, p, x + 32, sums + 4 * steps)
            part = c(part, p, x + 64, sums + 8 * steps)
            return d(part, p, x + 96, sums + 12 * steps)

        return add

    first_half, second_half, only_sub = half_block(0), half_block(4), sub_block(0)

    @numba.njit
    def one_token(weights: Any, blocks: Any, x: Any, scales: Any, sums: Any) -> Any:
        """A tile times one token."""
        total = all_f32(0.0)
        if subs == 8:
            for block in range(blocks):
                p = weights + tile_bytes * block
                total = fma(first_half(p, x, sums), repeat_f32(scales), total)
                total = fma(second_half(p, x + 128, sums + 16 * steps), repeat_f32(scales + 4), total)
                x += 256
                sums += 32 * steps
                scales += 8
        else:
            for first in range(0, blocks, 4):
                part = all_f32(0.0)
                for block in range(first, min(first + 4, blocks)):
                    part = only_sub(part, weights + tile_bytes * block, x, sums)
                    x += 32
                    sums += 4 * steps
                total = fma(part, repeat_f32(scales), total)
                scales += 4
        return total

    def store_sub_block(s: int) -> Any:
        @numba.njit
        def store(p: Any, at: Any) -> None:
            for k in range(8):
                store_bytes(at + 128 * k, codes(p, s, k) if signed else codes(p, s, k) + (64 - zero))
            for h in range(steps):
                store_f32(at + 1024 + 128 * h, scale(p, s, h))
                if has_offset:
                    store_f32(at + 1024 + 128 * (steps + h), offset(p, s, h) * -0.015625)

        return store

    a, b, c, d, e, f, g, h = (store_sub_block(min(s, subs - 1)) for s in range(8))

    @numba.njit
    def take_apart(weights: Any, blocks: Any, at: Any) -> None:
        """One tile of a pair into its half of the scratch's records."""
        for block in range(blocks):
            p = weights + tile_bytes * block
            a(p, at)
            if subs == 8:
                b(p, at + record)
                c(p, at + 2 * record)
                d(p, at + 3 * record)
                e(p, at + 4 * record)
                f(p, at + 5 * record)
                g(p, at + 6 * record)
                h(p, at + 7 * record)
            at += subs * record

    def several_tokens(count: int) -> Any:
        each = Tokens(count, layout.step)
        zeros, start, load_each, store_each = each.zeros, each.start, each.load_each, each.store_each
        dot = each.dot_signed if signed else each.dot
        scale_ints, add_int_times, add_scaled = each.scale_ints, each.add_int_times, each.add_scaled

        @numba.njit
        def tile_pair(
            at: Any, records: Any, x: Any, xs: Any, scales: Any, ss: Any, sums: Any, us: Any, out: Any, os: Any, add: Any
        ) -> None:
            """Two tiles times `count` tokens, over the columns in the scratch; added to out if `add`."""
            left, right = zeros(), zeros()
            if add:
                left, right = load_each(out, os), load_each(out + 64, os)
            for first in range(0, records, 4):
                part_left, part_right = zeros(), zeros()
                for _ in range(min(4, records - first)):
                    for h in range(steps):
                        ints = start(sums, us, signed_zero() >> 6 if signed else 1)
                        ints_left, ints_right = dot((ints, ints), at + 128 * in_step * h, x + 4 * in_step * h, xs)
                        part_left = scale_ints(part_left, ints_left, load_f32(at + 1024 + 128 * h))
                        part_right = scale_ints(part_right, ints_right, load_f32(at + 1088 + 128 * h))
                        if has_offset:
                            o = at + 1024 + 128 * (steps + h)
                            part_left = add_int_times(part_left, sums, us, load_f32(o))
                            part_right = add_int_times(part_right, sums, us, load_f32(o + 64))
                        sums += 4
                    at += record
                    x += 32
                left = add_scaled(left, part_left, scales, ss)
                right = add_scaled(right, part_right, scales, ss)
                scales += 4
            store_each(out, os, left)
            store_each(out + 64, os, right)

        return tile_pair

    most, four, one = several_tokens(most_tokens), several_tokens(4), several_tokens(1)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, pairs, blocks = get_i64(args), get_i64(get_i64(args + 8)), get_i64(args + 16), get_i64(args + 24)
        weights, out, os = get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        x, xs, scales, ss = get_i64(args + 56), get_i64(args + 64), get_i64(args + 72), get_i64(args + 80)
        sums, us = get_i64(args + 88), get_i64(args + 96)
        scratch = get_i64(args + 104) + thread * get_i64(args + 112)
        row_bytes = blocks * tile_bytes
        if count == 1:
            share = max(1, pairs // (8 * threads))
            while True:
                pair = fetch_add(counter, share)
                if pair >= pairs:
                    break
                for tile in range(2 * pair, 2 * min(pair + share, pairs)):
                    store_f32(out + 64 * tile, one_token(weights + row_bytes * tile, blocks, x, scales, sums))
            return
        while count > 0:
            pair = fetch_add(counter, 1)
            if pair >= pairs:
                break
            o = out + 128 * pair
            for first in range(0, blocks, chunk_blocks):
                some = min(chunk_blocks, blocks - first)
                left = weights + row_bytes * 2 * pair + tile_bytes * first
                take_apart(left, some, scratch)
                take_apart(left + row_bytes, some, scratch + 64)
                columns = first * subs * 32
                a, b, c, records = x + columns, scales + columns // 32, sums + columns // 8 * steps, some * subs
                t, add = 0, first > 0
                while t + most_tokens <= count:
                    most(scratch, records, a + t * xs, xs, b + t * ss, ss, c + t * us, us, o + t * os, os, add)
                    t += most_tokens
                while t + 4 <= count:
                    four(scratch, records, a + t * xs, xs, b + t * ss, ss, c + t * us, us, o + t * os, os, add)
                    t += 4
                while t < count:
                    one(scratch, records, a + t * xs, xs, b + t * ss, ss, c + t * us, us, o + t * os, os, add)
                    t += 1

    return kernel
