"""Linear layers over bfloat16 weights by AMX.

Inputs are rounded to bfloat16 (`dtype="bfloat16"`), whose products are exact in float32, and summed there.

All numbers of tokens take the same path: a sum begins at 0, and 32 columns after 32 columns the products of their
tiles are added to it. The left factor is 16 rows of weights, the right one up to 16 tokens. With up to 16 tokens
weights are read where they are in the file. With more, 64 rows of some columns are copied to scratch, which stays in
the CPU's cache for all tokens.
"""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.convert import pairs_of_bf16, rounded_to_bf16
from mistral_portable_numba.compiler.simd.get_put import get_i16, get_i64, put_i16
from mistral_portable_numba.compiler.simd.lanes import all_i32, keep_between, lane_numbers
from mistral_portable_numba.compiler.simd.load_store import (
    load_f32,
    load_i32,
    prefetch,
    prefetch_first,
    store_i32,
    store_i32_apart,
    transpose4,
)
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.tiles import (
    begin_tiles,
    bf16_product,
    end_tiles,
    load_tile,
    store_tile,
    zero_tile,
)
from mistral_portable_numba.kernels.registry import AnyIsa, Factory
from mistral_portable_numba.layouts import TILED_CHUNK, TILED_QUADS, TILED_TOKENS, bf16_bytes

__all__ = ["KERNELS", "round_kernel", "tiled_kernel"]

_PIECE = 1024  # columns that a thread rounds at a time
_STEPS = TILED_CHUNK // 32
_AHEAD = 128
"""Bytes of a row between what is read from the file and what is prefetched."""

# Four tiles of weights, one after the other in tile 4, times those of a group of tokens in 5.
zero0, zero1, zero2, zero3 = (zero_tile(c) for c in range(4))
load0, load1, load2, load3 = (load_tile(c) for c in range(4))
store0, store1, store2, store3 = (store_tile(c) for c in range(4))
load_weights, load_inputs = load_tile(4), load_tile(5)
add0, add1, add2, add3 = (bf16_product(c, 4, 5) for c in range(4))


_STEP = bf16_bytes(32)


def round_kernel() -> Callable[..., Any]:
    """The kernel that rounds rows of x to bfloat16, for `tiled_kernel`.

    A group of 16 tokens (the last one may be smaller) has tiles [16, n] of dwords, which are two columns: one tile for
    each 32 columns.
    Arguments: counter, address of T, columns, x, bytes between its rows, result, its bytes per token.
    """

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, columns = get_i64(args), get_i64(get_i64(args + 8)), get_i64(args + 16)
        x, xs, out, os = get_i64(args + 24), get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        pieces = (columns + _PIECE - 1) // _PIECE
        work = (count + 15) // 16 * pieces
        while True:
            piece = fetch_add(counter, 1)
            if piece >= work:
                break
            first, begin = piece // pieces * 16, piece % pieces * _PIECE
            n, end = min(16, count - first), min(begin + _PIECE, columns)
            for t in range(n):
                at, to = x + (first + t) * xs, out + first * os + 4 * t
                for column in range(begin, end, 32):
                    low, high = load_f32(at + 4 * column), load_f32(at + 4 * column + 64)
                    if column + 32 > columns:
                        last = columns - column - 1
                        low = keep_between(low, lane_numbers(), 0, last, 0.0)
                        high = keep_between(high, lane_numbers(), 0, last - 16, 0.0)
                    pairs = pairs_of_bf16(rounded_to_bf16(low), rounded_to_bf16(high))
                    store_i32_apart(to + column // 32 * _STEP * n, 4 * n, pairs)

    return kernel


def tiled_kernel() -> Callable[..., Any]:
    """The kernel of out = x @ weight.T.

    Arguments: counter, address of T, rows of the weight, columns, weight, x from `round_kernel`, its bytes per token,
    out, bytes between its rows, sizes of tiles (`layouts.all_tile_sizes`), scratch, its bytes per thread. It writes
    whole pairs of tiles, and whole groups of four tokens.
    """

    @inlined
    def copy(w: Any, ws: Any, rows: Any, columns: Any, steps: Any, to: Any) -> None:
        """Copy 64 rows to scratch, 32 columns by 32, and zeros beyond the last row and column."""
        for row in range(64):
            for step in range(steps):
                at, place = w + ws * row + 64 * step, to + 64 * (64 * step + row)
                left = columns - 32 * step if row < rows else 0
                if left >= 32:
                    store_i32(place, load_i32(at))
                else:
                    store_i32(place, all_i32(0))
                    for column in range(left):
                        put_i16(place + 2 * column, get_i16(at + 2 * column))

    @inlined
    def begin(sums: Any, first: Any) -> None:
        """Set the sums of 64 rows to 0, or to what was kept."""
        if first:
            zero0()
            zero1()
            zero2()
            zero3()
        else:
            load0(sums, 64)
            load1(sums + 1024, 64)
            load2(sums + 2048, 64)
            load3(sums + 3072, 64)

    @inlined
    def keep(sums: Any) -> None:
        store0(sums, 64)
        store1(sums + 1024, 64)
        store2(sums + 2048, 64)
        store3(sums + 3072, 64)

    @inlined
    def add_step(w: Any, ws: Any, x: Any, n: Any) -> None:
        """Add 32 columns of 64 rows of weights, ws bytes apart, and of a group of n tokens."""
        load_inputs(x, 4 * n)
        load_weights(w, ws)
        add0()
        load_weights(w + 16 * ws, ws)
        add1()
        load_weights(w + 32 * ws, ws)
        add2()
        load_weights(w + 48 * ws, ws)
        add3()

    @inlined
    def put(sums: Any, rows: Any, n: Any, out: Any, os: Any) -> None:
        """Transpose kept sums, tiles [16, 16] of rows and tokens, to the rows of n tokens."""
        for row in range(0, 64 if rows > 32 else 32, 4):
            for t in range(0, n, 4):
                transpose4(sums + 64 * row + 4 * t, 64, out + os * t + 4 * row, os)

    @inlined
    def few(w: Any, ws: Any, rows: Any, columns: Any, x: Any, n: Any, out: Any, os: Any, scratch: Any) -> None:
        """Multiply up to 64 rows with a group of n tokens; only what is no whole tile is copied."""
        begin(scratch, True)
        whole, steps = columns // 32 if rows >= 64 else 0, (columns + 31) // 32
        for step in range(whole):
            add_step(w + 64 * step, ws, x + n * _STEP * step, n)
            for row in range(64):
                prefetch_first(w + 64 * step + _AHEAD + ws * row)
        for step in range(whole, steps):
            copy(w + 64 * step, ws, rows, columns - 32 * step, 1, scratch)
            add_step(scratch, 64, x + n * _STEP * step, n)
        keep(scratch)
        put(scratch, rows, n, out, os)

    @inlined
    def many(
        w: Any,
        ws: Any,
        rows: Any,
        columns: Any,
        x: Any,
        xs: Any,
        count: Any,
        out: Any,
        os: Any,
        sizes: Any,
        scratch: Any,
    ) -> None:
        """Multiply some rows with up to TILED_TOKENS tokens, chunk after chunk of the columns."""
        quads, groups, last = (rows + 63) // 64, (count + 15) // 16, (columns + 31) // 32
        sums, due_rows = scratch + 4096 * _STEPS, (63 + groups) // groups
        for first in range(0, last, _STEPS):
            steps = min(_STEPS, last - first)
            for quad in range(quads):
                at = w + 64 * ws * quad + 64 * first
                copy(at, ws, rows - 64 * quad, columns - 32 * first, steps, scratch)
                due = at + 64 * ws if quad + 1 < quads else w + 64 * (first + _STEPS)
                begin_tiles(sizes + 64 * 16)
                for g in range(groups):
                    n, own = min(16, count - 16 * g), sums + 4096 * (groups * quad + g)
                    if n < 16:
                        begin_tiles(sizes + 64 * n)
                    begin(own, first == 0)
                    for step in range(steps):
                        x_at = x + 16 * xs * g + n * _STEP * (first + step)
                        for line in range(0, 16 * _STEP, 64):
                            prefetch_first(x_at + n * _STEP + line)
                        add_step(scratch + 4096 * step, 64, x_at, n)
                        for row in range(due_rows):
                            prefetch(due + ws * (due_rows * g + row) + 64 * step)
                    keep(own)
        for quad in range(quads):
            for g in range(groups):
                own, o = sums + 4096 * (groups * quad + g), out + 16 * os * g + 256 * quad
                put(own, rows - 64 * quad, min(16, count - 16 * g), o, os)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, rows, columns = (
            get_i64(args),
            get_i64(get_i64(args + 8)),
            get_i64(args + 16),
            get_i64(args + 24),
        )
        w, x, xs, ws = get_i64(args + 32), get_i64(args + 40), get_i64(args + 48), 2 * columns
        out, os, sizes = get_i64(args + 56), get_i64(args + 64), get_i64(args + 72)
        scratch, share = get_i64(args + 80) + thread * get_i64(args + 88), 64
        if count > 16:
            share = 64 * max(1, min(TILED_QUADS, rows // (256 * threads)))
        else:
            begin_tiles(sizes + 64 * count)
        while count > 0:
            first = fetch_add(counter, share)
            if first >= rows:
                break
            some, at, to = min(share, rows - first), w + ws * first, out + 4 * first
            if count <= 16:
                few(at, ws, some, columns, x, count, to, os, scratch)
                continue
            for t in range(0, count, TILED_TOKENS):
                n = min(TILED_TOKENS, count - t)
                many(at, ws, some, columns, x + xs * t, xs, n, to + os * t, os, sizes, scratch)
        end_tiles()

    return kernel


KERNELS: dict[str, Factory] = {"round_bfloat16": AnyIsa(round_kernel), "tiled_bfloat16": AnyIsa(tiled_kernel)}
