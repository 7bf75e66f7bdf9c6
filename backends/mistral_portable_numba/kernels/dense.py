"""Linear layers over float32, float16 and bfloat16 weights in the file's own row order, in float32 arithmetic.

A sum has 16 lanes, of every 16th column, which are added up at its end, for one token and for many alike. Few tokens
are multiplied four at a time, or one by one, with rows as they are read. For many, a chunk of columns of 16 rows is
unpacked to scratch, which stays in the first-level cache, and the sums of all tokens wait in the second-level one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.get_put import get_bf16, get_f16, get_f32, get_i64, put_f32
from mistral_portable_numba.compiler.simd.lanes import all_f32
from mistral_portable_numba.compiler.simd.load_store import load_bf16, load_f16, load_f32, prefetch_first, store_f32
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.reduce import sum_lanes
from mistral_portable_numba.compiler.simd.tokens import Tokens
from mistral_portable_numba.kernels.registry import Factory
from mistral_portable_numba.layouts import DENSE_CHUNK, DENSE_PART, DENSE_ROWS, DENSE_TOKENS

__all__ = ["DENSE", "KERNELS", "dense_kernel"]

DENSE: dict[str, tuple[int, Any, Any]] = {
    "float32": (4, load_f32, get_f32),
    "float16": (2, load_f16, get_f16),
    "bfloat16": (2, load_bf16, get_bf16),
}
"""dtype -> bytes of a number, the operation that loads 16, and the one that loads one."""


def dense_kernel(dtype: str, isa: Isa) -> Callable[..., Any]:
    """The kernel of out = x @ weight.T.

    Arguments: counter, address of T, rows of the weight, columns, weight, x, its stride, out, its stride, scratch, its
    bytes per thread.
    """
    size, load, get = DENSE[dtype]

    def block(tokens: int) -> Any:
        """The function that multiplies four rows with `tokens` tokens."""
        each = Tokens(tokens)
        zeros, fma_each = each.zeros, each.fma_each

        @inlined
        def rows4(w: Any, ws: Any, rows: Any, columns: Any, x: Any, xs: Any, out: Any, os: Any) -> None:
            # The last group may have fewer rows: it then reads the last row again and does not store the result.
            w1, w2, w3 = w + ws * min(1, rows - 1), w + ws * min(2, rows - 1), w + ws * min(3, rows - 1)
            a, b, c, d = zeros(), zeros(), zeros(), zeros()
            whole = columns // 16 * 16
            for column in range(0, whole, 16):
                at = size * column
                a = fma_each(a, load(w + at), x + 4 * column, xs)
                b = fma_each(b, load(w1 + at), x + 4 * column, xs)
                c = fma_each(c, load(w2 + at), x + 4 * column, xs)
                d = fma_each(d, load(w3 + at), x + 4 * column, xs)
            for t in range(tokens):
                r0, r1, r2, r3 = sum_lanes(a[t]), sum_lanes(b[t]), sum_lanes(c[t]), sum_lanes(d[t])
                for column in range(whole, columns):
                    value, at = get_f32(x + xs * t + 4 * column), size * column
                    r0 += value * get(w + at)
                    r1 += value * get(w1 + at)
                    r2 += value * get(w2 + at)
                    r3 += value * get(w3 + at)
                put_f32(out + os * t, r0)
                if rows > 1:
                    put_f32(out + os * t + 4, r1)
                if rows > 2:
                    put_f32(out + os * t + 8, r2)
                if rows > 3:
                    put_f32(out + os * t + 12, r3)

        return rows4

    wide = isa.tokens > 4
    across, down = (4, 4) if wide else (3, 2)  # as many sums as there are registers for
    each = Tokens(across)
    fma_each, load_each, store_each = each.fma_each, each.load_each, each.store_each

    @inlined
    def unpack(w: Any, ws: Any, rows: Any, columns: Any, to: Any) -> None:
        """Unpack some columns of DENSE_PART rows to float32; the last row stands for rows beyond it."""
        for row in range(DENSE_PART):
            at = w + ws * min(row, rows - 1)
            for column in range(0, columns, 16):
                store_f32(to + 4 * (DENSE_CHUNK * row + column), load(at + size * column))

    @inlined
    def add_columns(w: Any, columns: Any, x: Any, xs: Any, ahead: Any, sums: Any, ss: Any) -> None:
        """Add the products of some columns of `down` rows and `across` tokens to their sums, vectors of 16 lanes.

        A token's sums are ss bytes apart. ahead: the columns of another token, which are wanted soon.
        """
        a, b = load_each(sums, ss), load_each(sums + 64, ss)
        if wide:
            c, d = load_each(sums + 128, ss), load_each(sums + 192, ss)
        for column in range(0, columns, 16):
            at, to = w + 4 * column, x + 4 * column
            prefetch_first(ahead + 4 * column)
            a = fma_each(a, load_f32(at), to, xs)
            b = fma_each(b, load_f32(at + 4 * DENSE_CHUNK), to, xs)
            if wide:
                c = fma_each(c, load_f32(at + 8 * DENSE_CHUNK), to, xs)
                d = fma_each(d, load_f32(at + 12 * DENSE_CHUNK), to, xs)
        store_each(sums, ss, a)
        store_each(sums + 64, ss, b)
        if wide:
            store_each(sums + 128, ss, c)
            store_each(sums + 192, ss, d)

    @inlined
    def finish(w: Any, ws: Any, rows: Any, columns: Any, x: Any, sums: Any, out: Any) -> None:
        """Store the results of some rows and a token: the sums' lanes, and the columns that fill no vector."""
        for row in range(rows):
            result = sum_lanes(load_f32(sums + 64 * row))
            for column in range(columns // 16 * 16, columns):
                result += get_f32(x + 4 * column) * get(w + ws * row + size * column)
            put_f32(out + 4 * row, result)

    @inlined
    def many(
        w: Any, ws: Any, rows: Any, columns: Any, x: Any, xs: Any, count: Any, out: Any, os: Any, scratch: Any
    ) -> None:
        """Multiply up to DENSE_ROWS rows with up to DENSE_TOKENS tokens, in whole groups, chunk after chunk."""
        sums, ss = scratch + 4 * DENSE_PART * DENSE_CHUNK, 64 * DENSE_ROWS
        for at in range(sums, sums + ss * count, 64):
            store_f32(at, all_f32(0.0))
        for first in range(0, columns // 16 * 16, DENSE_CHUNK):
            some = min(DENSE_CHUNK, columns // 16 * 16 - first)
            for part in range(0, rows, DENSE_PART):
                unpack(w + ws * part + size * first, ws, rows - part, some, scratch)
                for t in range(0, count, across):
                    for row in range(0, DENSE_PART, down):
                        to = sums + ss * t + 64 * (part + row)
                        ahead = x + xs * (t + across + min(row // down, across - 1)) + 4 * first
                        add_columns(scratch + 4 * DENSE_CHUNK * row, some, x + xs * t + 4 * first, xs, ahead, to, ss)
        for t in range(count):
            finish(w, ws, rows, columns, x + xs * t, sums + ss * t, out + os * t)

    four, one = block(4), block(1)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, rows, columns = (
            get_i64(args),
            get_i64(get_i64(args + 8)),
            get_i64(args + 16),
            get_i64(args + 24),
        )
        w, x, xs, out, os = (
            get_i64(args + 32),
            get_i64(args + 40),
            get_i64(args + 48),
            get_i64(args + 56),
            get_i64(args + 64),
        )
        ws, scratch = size * columns, get_i64(args + 72) + thread * get_i64(args + 80)
        share = DENSE_ROWS if count > 2 * across else 16
        while count > 0:
            first = fetch_add(counter, share)
            if first >= rows:
                break
            last = min(first + share, rows)
            t = 0
            if count > 2 * across:
                while t + across <= count:
                    some = min(DENSE_TOKENS, count - t) // across * across
                    many(
                        w + ws * first,
                        ws,
                        last - first,
                        columns,
                        x + xs * t,
                        xs,
                        some,
                        out + os * t + 4 * first,
                        os,
                        scratch,
                    )
                    t += some
            while t + 4 <= count:
                for row in range(first, last, 4):
                    four(w + ws * row, ws, last - row, columns, x + xs * t, xs, out + os * t + 4 * row, os)
                t += 4
            while t < count:
                for row in range(first, last, 4):
                    one(w + ws * row, ws, last - row, columns, x + xs * t, xs, out + os * t + 4 * row, os)
                t += 1

    return kernel


KERNELS: dict[str, Factory] = {f"linear_{dtype}": partial(dense_kernel, dtype) for dtype in DENSE}
