"""Linear layers over float32, float16 and bfloat16 weights in the file's own row order, in float32 arithmetic.

They compute four rows times four tokens (or one) at a time, 16 columns a step; 16 rows stay in the CPU's cache for all
tokens.
"""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.get_put import get_bf16, get_f16, get_f32, get_i64, put_f32
from mistral_portable_numba.compiler.simd.load_store import load_bf16, load_f16, load_f32
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.reduce import sum_lanes
from mistral_portable_numba.compiler.simd.tokens import Tokens
from mistral_portable_numba.kernels.registry import AnyIsa, Factory

__all__ = ["DENSE", "KERNELS", "dense_kernel"]

DENSE: dict[str, tuple[int, Any, Any]] = {
    "float32": (4, load_f32, get_f32),
    "float16": (2, load_f16, get_f16),
    "bfloat16": (2, load_bf16, get_bf16),
}
"""dtype -> bytes of a number, the operation that loads 16, and the one that loads one."""


def dense_kernel(dtype: str) -> Callable[..., Any]:
    """The kernel of out = x @ weight.T.

    Arguments: counter, address of T, rows of the weight, columns, weight, x, its stride, out, its stride.
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
        ws = size * columns
        while count > 0:
            first = fetch_add(counter, 16)
            if first >= rows:
                break
            last = min(first + 16, rows)
            t = 0
            while t + 4 <= count:
                for row in range(first, last, 4):
                    four(w + ws * row, ws, last - row, columns, x + xs * t, xs, out + os * t + 4 * row, os)
                t += 4
            while t < count:
                for row in range(first, last, 4):
                    one(w + ws * row, ws, last - row, columns, x + xs * t, xs, out + os * t + 4 * row, os)
                t += 1

    return kernel


KERNELS: dict[str, Factory] = {f"linear_{dtype}": AnyIsa(dense_kernel, (dtype,)) for dtype in DENSE}
