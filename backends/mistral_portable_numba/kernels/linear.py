"""Linear layers over quantized weights: int4 times int8, one kernel per block format.

A lane is a row, so nothing is summed across lanes. Weights are taken apart in registers: for one token, a tile at a
time; for a few tokens, two tiles at a time. For more tokens two tiles are taken apart once, into a scratch that stays
in the cache.
"""

from collections.abc import Callable
from typing import Any

import numba

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
    load_bytes,
    load_f32,
    prefetch,
    repeat4,
    repeat_f32,
    signed_zero,
    store_bytes,
    store_f32,
    to_f32,
)
from mistral_portable_numba.kernels.formats import Format
from mistral_portable_numba.layouts import CHUNK, linear_record

__all__ = ["linear_kernel"]


def linear_kernel(fmt: Format, most: int) -> Callable[..., Any]:
    """The kernel of out = x @ weight.T for a format; it takes 4 or `most` tokens at a time.

    Arguments: counter, address of T, pairs of tiles, blocks per row, weights; then the addresses and strides (bytes
    between tokens) of out, of x's codes, scales and sums per step; scratch, its bytes per thread.

    If T > 1 it reads and writes as many tokens as make whole groups (see `layouts.TOKEN_GROUP`).
    """
    # Activations carry -64 * the sums of their columns. Unsigned codes of several tokens are turned into codes with
    # zero 64, so that the sum is what the integers start with; signed ones have the zero of the instruction set.
    codes, scale, offset = fmt.codes, fmt.scale, fmt.offset or fmt.scale
    layout, signed, zero = fmt.layout, fmt.signed, fmt.zero
    has_offset, tile_bytes, record = layout.offset, 16 * layout.bytes, linear_record(layout)
    subs, steps, chunk_blocks = layout.columns // 32, 32 // layout.step, CHUNK // layout.columns
    in_step = 8 // steps
    ahead = max(1, 9216 // tile_bytes) * tile_bytes

    @numba.njit
    def centered(p: Any, s: Any, k: Any) -> Any:
        return codes(p, s, k) if signed else codes(p, s, k) + (64 - zero)

    def ask_for(s: int) -> Any:
        """Fetch the share of sub-block s of a block that is due later: the order in which blocks are read hides from
        the hardware what comes next."""
        begin, end = tile_bytes * s // subs // 64, -(-tile_bytes * (s + 1) // subs // 64)

        @numba.njit
        def fetch(p: Any) -> None:
            for line in range(begin, end):
                prefetch(p + ahead + 64 * line)

        return fetch

    def one_token_sub(s: int) -> Any:
        """32 columns of a tile, s of a block, times one token; s is a constant, so LLVM can plan the bit fields."""
        fetch = ask_for(s)

        @numba.njit
        def add(part: Any, p: Any, x: Any, sums: Any) -> Any:
            fetch(p)
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

    def one_token_half(s: int) -> Any:
        """128 columns of a tile, from sub-block s on, times one token."""
        a, b, c, d = (one_token_sub(min(i, subs - 1)) for i in range(s, s + 4))

        @numba.njit
        def add(p: Any, x: Any, sums: Any) -> Any:
            part = a(all_f32(0.0), p, x, sums)
            part = b(part, p, x + 32, sums + 4 * steps)
            part = c(part, p, x + 64, sums + 8 * steps)
            return d(part, p, x + 96, sums + 12 * steps)

        return add

    first_half, second_half, only_sub = one_token_half(0), one_token_half(4), one_token_sub(0)

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

    def few_tokens(count: int) -> Any:
        """Two tiles times `count` tokens, over all columns."""
        each = Tokens(count)
        zeros, start, store_each, scale_ints = each.zeros, each.start, each.store_each, each.scale_ints
        add_int_times, add_scaled, dot = each.add_int_times, each.add_scaled, each.dot_signed if signed else each.dot

        def sub(s: int) -> Any:
            fetch = ask_for(s)

            @numba.njit
            def add(left: Any, right: Any, p: Any, q: Any, x: Any, xs: Any, sums: Any, us: Any) -> Any:
                fetch(p)
                fetch(q)
                for h in range(steps):
                    ints = start(sums + 4 * h, us, signed_zero() >> 6 if signed else 1)
                    both = (ints, ints)
                    for k in range(in_step * h, in_step * (h + 1)):
                        both = dot(both, centered(p, s, k), centered(q, s, k), x + 4 * k, xs)
                    left = scale_ints(left, both[0], scale(p, s, h))
                    right = scale_ints(right, both[1], scale(q, s, h))
                    if has_offset:
                        left = add_int_times(left, sums + 4 * h, us, offset(p, s, h) * -0.015625)
                        right = add_int_times(right, sums + 4 * h, us, offset(q, s, h) * -0.015625)
                return left, right

            return add

        a, b, c, d, e, f, g, h = (sub(min(s, subs - 1)) for s in range(8))

        @numba.njit
        def tile_pair(
            p: Any, q: Any, blocks: Any, x: Any, xs: Any, scales: Any, ss: Any, sums: Any, us: Any, out: Any, os: Any
        ) -> None:
            left, right = zeros(), zeros()
            some, more = zeros(), zeros()
            column = 0
            for _ in range(blocks):
                some, more = a(some, more, p, q, x, xs, sums, us)
                if subs == 8:
                    some, more = b(some, more, p, q, x + 32, xs, sums + 4 * steps, us)
                    some, more = c(some, more, p, q, x + 64, xs, sums + 8 * steps, us)
                    some, more = d(some, more, p, q, x + 96, xs, sums + 12 * steps, us)
                    left = add_scaled(left, some, scales, ss)
                    right = add_scaled(right, more, scales, ss)
                    some, more = e(zeros(), zeros(), p, q, x + 128, xs, sums + 16 * steps, us)
                    some, more = f(some, more, p, q, x + 160, xs, sums + 20 * steps, us)
                    some, more = g(some, more, p, q, x + 192, xs, sums + 24 * steps, us)
                    some, more = h(some, more, p, q, x + 224, xs, sums + 28 * steps, us)
                    scales += 4
                p += tile_bytes
                q += tile_bytes
                x += 32 * subs
                sums += 4 * steps * subs
                column += 32 * subs
                if column % 128 == 0:
                    left = add_scaled(left, some, scales, ss)
                    right = add_scaled(right, more, scales, ss)
                    some, more = zeros(), zeros()
                    scales += 4
            if column % 128 != 0:
                left = add_scaled(left, some, scales, ss)
                right = add_scaled(right, more, scales, ss)
            store_each(out, os, left)
            store_each(out + 64, os, right)

        return tile_pair

    def store_sub(s: int) -> Any:
        @numba.njit
        def store(p: Any, at: Any) -> None:
            for k in range(8):
                store_bytes(at + 128 * k, centered(p, s, k))
            for h in range(steps):
                store_f32(at + 1024 + 128 * h, scale(p, s, h))
                if has_offset:
                    store_f32(at + 1024 + 128 * (steps + h), offset(p, s, h) * -0.015625)

        return store

    store0, store1, store2, store3, store4, store5, store6, store7 = (store_sub(min(s, subs - 1)) for s in range(8))

    @numba.njit
    def take_apart(weights: Any, blocks: Any, at: Any) -> None:
        """One tile of a pair into its half of the scratch's records."""
        for block in range(blocks):
            p = weights + tile_bytes * block
            store0(p, at)
            if subs == 8:
                store1(p, at + record)
                store2(p, at + 2 * record)
                store3(p, at + 3 * record)
                store4(p, at + 4 * record)
                store5(p, at + 5 * record)
                store6(p, at + 6 * record)
                store7(p, at + 7 * record)
            at += subs * record

    def many_tokens(count: int) -> Any:
        """Two tiles times `count` tokens, over the columns in the scratch; added to out if `add`."""
        each = Tokens(count)
        zeros, start, load_each, store_each = each.zeros, each.start, each.load_each, each.store_each
        scale_ints, add_int_times, add_scaled = each.scale_ints, each.add_int_times, each.add_scaled
        dot = each.dot_signed if signed else each.dot

        @numba.njit
        def tile_pair(
            at: Any,
            records: Any,
            x: Any,
            xs: Any,
            scales: Any,
            ss: Any,
            sums: Any,
            us: Any,
            out: Any,
            os: Any,
            add: Any,
        ) -> None:
            left, right = zeros(), zeros()
            if add:
                left, right = load_each(out, os), load_each(out + 64, os)
            for first in range(0, records, 4):
                some, more = zeros(), zeros()
                for _ in range(min(4, records - first)):
                    for h in range(steps):
                        ints = start(sums, us, signed_zero() >> 6 if signed else 1)
                        both = (ints, ints)
                        for k in range(in_step * h, in_step * (h + 1)):
                            both = dot(both, load_bytes(at + 128 * k), load_bytes(at + 128 * k + 64), x + 4 * k, xs)
                        some = scale_ints(some, both[0], load_f32(at + 1024 + 128 * h))
                        more = scale_ints(more, both[1], load_f32(at + 1088 + 128 * h))
                        if has_offset:
                            o = at + 1024 + 128 * (steps + h)
                            some = add_int_times(some, sums, us, load_f32(o))
                            more = add_int_times(more, sums, us, load_f32(o + 64))
                        sums += 4
                    at += record
                    x += 32
                left = add_scaled(left, some, scales, ss)
                right = add_scaled(right, more, scales, ss)
                scales += 4
            store_each(out, os, left)
            store_each(out + 64, os, right)

        return tile_pair

    up_to_four, up_to_most, many = few_tokens(4), few_tokens(most), many_tokens(most)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, pairs, blocks = (
            get_i64(args),
            get_i64(get_i64(args + 8)),
            get_i64(args + 16),
            get_i64(args + 24),
        )
        weights, out, os = get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        x, xs, scales, ss = get_i64(args + 56), get_i64(args + 64), get_i64(args + 72), get_i64(args + 80)
        sums, us = get_i64(args + 88), get_i64(args + 96)
        scratch = get_i64(args + 104) + thread * get_i64(args + 112)
        row_bytes = blocks * tile_bytes
        share = max(1, pairs // (8 * threads)) if count <= most else 1
        while count > 0:
            first_pair = fetch_add(counter, share)
            if first_pair >= pairs:
                break
            for pair in range(first_pair, min(first_pair + share, pairs)):
                p, o = weights + 2 * row_bytes * pair, out + 128 * pair
                q = p + row_bytes
                if count == 1:
                    store_f32(o, one_token(p, blocks, x, scales, sums))
                    store_f32(o + 64, one_token(q, blocks, x, scales, sums))
                elif count <= 4:
                    up_to_four(p, q, blocks, x, xs, scales, ss, sums, us, o, os)
                elif count <= most:
                    up_to_most(p, q, blocks, x, xs, scales, ss, sums, us, o, os)
                else:
                    for first in range(0, blocks, chunk_blocks):
                        some, columns = min(chunk_blocks, blocks - first), first * subs * 32
                        take_apart(p + tile_bytes * first, some, scratch)
                        take_apart(q + tile_bytes * first, some, scratch + 64)
                        a, b, c, records = x + columns, scales + columns // 32, sums + columns // 8 * steps, some * subs
                        for t in range(0, count, most):
                            d, e, f, g = a + t * xs, b + t * ss, c + t * us, o + t * os
                            many(scratch, records, d, xs, e, ss, f, us, g, os, first > 0)

    return kernel
