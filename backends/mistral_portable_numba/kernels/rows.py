"""The small ops, row by row: rms_norm, rope, silu_mul, add, weigh, take_columns, take_rows.

Strides of rows are whole vectors, so elementwise kernels may read and write beyond the last column. Sums stop at the
last column. In the arguments of kernels an address of rows is followed by their stride in bytes.
"""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.get_put import get_f32, get_f64_as_f32, get_i32, get_i64, put_f32
from mistral_portable_numba.compiler.simd.lanes import all_f32, fma, square_root, weighed
from mistral_portable_numba.compiler.simd.load_store import load_f32, store_f32
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.reduce import sum_lanes
from mistral_portable_numba.kernels.exp import exp
from mistral_portable_numba.kernels.registry import AnyIsa, Factory

__all__ = [
    "KERNELS",
    "add_kernel",
    "rms_norm_kernel",
    "rope_kernel",
    "silu_mul_kernel",
    "take_kernel",
    "weigh_kernel",
    "weigh_rows_kernel",
]

_ROWS = 8  # rows of many that a thread claims at a time


@inlined
def _claim(counter: Any, count: Any) -> Any:
    """The next rows to do: first, and one behind the last."""
    first = fetch_add(counter, _ROWS)
    return min(first, count), min(first + _ROWS, count)


def rms_norm_kernel() -> Callable[..., Any]:
    """The kernel of rms_norm. Arguments: counter, address of T, columns, x, out, weight (float32, whole vectors), eps
    (float64)."""

    @inlined
    def norm(x: Any, out: Any, weight: Any, columns: Any, eps: Any) -> None:
        squares = all_f32(0.0)
        whole = columns // 16 * 16
        for column in range(0, whole, 16):
            v = load_f32(x + 4 * column)
            squares = fma(v, v, squares)
        total = sum_lanes(squares)
        for column in range(whole, columns):
            total += get_f32(x + 4 * column) * get_f32(x + 4 * column)
        root = all_f32(1.0) / all_f32(square_root(total / columns + eps))
        for column in range(0, columns, 16):
            store_f32(out + 4 * column, load_f32(x + 4 * column) * root * load_f32(weight + 4 * column))

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, columns = get_i64(args), get_i64(get_i64(args + 8)), get_i64(args + 16)
        x, xs, out, os = get_i64(args + 24), get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        weight, eps = get_i64(args + 56), get_f64_as_f32(args + 64)
        first, last = _claim(counter, count)
        while first < last:
            for t in range(first, last):
                norm(x + t * xs, out + t * os, weight, columns, eps)
            first, last = _claim(counter, count)

    return kernel


def rope_kernel() -> Callable[..., Any]:
    """The kernel of rope. Arguments: counter, address of T, heads, head_dim, x, out, address of the angles' address.

    Angles: float32 [T, 2, head_dim / 2], cosines and sines.
    """

    @inlined
    def turn(x: Any, out: Any, angles: Any, half: Any) -> None:
        whole = half // 16 * 16
        far = 4 * half
        for j in range(0, whole, 16):
            a, b = load_f32(x + 4 * j), load_f32(x + far + 4 * j)
            cos, sin = load_f32(angles + 4 * j), load_f32(angles + far + 4 * j)
            store_f32(out + 4 * j, a * cos - b * sin)
            store_f32(out + far + 4 * j, b * cos + a * sin)
        for j in range(whole, half):
            c, d = get_f32(x + 4 * j), get_f32(x + far + 4 * j)
            cosine, sine = get_f32(angles + 4 * j), get_f32(angles + far + 4 * j)
            put_f32(out + 4 * j, c * cosine - d * sine)
            put_f32(out + far + 4 * j, d * cosine + c * sine)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, heads, head_dim = (
            get_i64(args),
            get_i64(get_i64(args + 8)),
            get_i64(args + 16),
            get_i64(args + 24),
        )
        x, xs, out, os = get_i64(args + 32), get_i64(args + 40), get_i64(args + 48), get_i64(args + 56)
        angles = get_i64(get_i64(args + 64))
        first, last = _claim(counter, count)
        while first < last:
            for t in range(first, last):
                for head in range(heads):
                    at = 4 * head * head_dim
                    turn(x + t * xs + at, out + t * os + at, angles + 4 * t * head_dim, head_dim // 2)
            first, last = _claim(counter, count)

    return kernel


def _elementwise(one: Any) -> Callable[..., Any]:
    """A kernel that combines a and b by `one`. Arguments: counter, address of T, columns, a, b, out."""

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, columns = get_i64(args), get_i64(get_i64(args + 8)), get_i64(args + 16)
        a, sa, b, sb = get_i64(args + 24), get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        out, os = get_i64(args + 56), get_i64(args + 64)
        first, last = _claim(counter, count)
        while first < last:
            for t in range(first, last):
                for column in range(0, columns, 16):
                    at = 4 * column
                    store_f32(out + t * os + at, one(load_f32(a + t * sa + at), load_f32(b + t * sb + at)))
            first, last = _claim(counter, count)

    return kernel


@inlined
def _add(a: Any, b: Any) -> Any:
    return a + b


@inlined
def _silu_mul(gate: Any, up: Any) -> Any:
    return gate / (exp(gate * -1.0) + 1.0) * up


def add_kernel() -> Callable[..., Any]:
    """out = a + b. A stride of 0 adds one row, a bias, to all."""
    return _elementwise(_add)


def weigh_kernel() -> Callable[..., Any]:
    """out = a * b, but 0 where b is 0."""
    return _elementwise(weighed)


def weigh_rows_kernel() -> Callable[..., Any]:
    """out = a * b, but 0 where b is 0; b has one column. Arguments: counter, address of T, columns, a, b, out."""

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, columns = get_i64(args), get_i64(get_i64(args + 8)), get_i64(args + 16)
        a, sa, b, sb = get_i64(args + 24), get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        out, os = get_i64(args + 56), get_i64(args + 64)
        first, last = _claim(counter, count)
        while first < last:
            for t in range(first, last):
                factor = all_f32(get_f32(b + t * sb))
                for column in range(0, columns, 16):
                    store_f32(out + t * os + 4 * column, weighed(load_f32(a + t * sa + 4 * column), factor))
            first, last = _claim(counter, count)

    return kernel


def silu_mul_kernel() -> Callable[..., Any]:
    """out = silu(a) * b."""
    return _elementwise(_silu_mul)


def take_kernel() -> Callable[..., Any]:
    """out[i] = x[rows[i]]. Arguments: counter, address of the count, columns, x, out, address of the address of rows
    (int32), or 0 to take every row; x may then start in the middle of a row."""

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, columns = get_i64(args), get_i64(get_i64(args + 8)), get_i64(args + 16)
        x, xs, out, os = get_i64(args + 24), get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        rows = get_i64(args + 56)
        first, last = _claim(counter, count)
        while first < last:
            for t in range(first, last):
                row = get_i32(get_i64(rows) + 4 * t) if rows != 0 else t
                for column in range(columns):
                    put_f32(out + t * os + 4 * column, get_f32(x + row * xs + 4 * column))
            first, last = _claim(counter, count)

    return kernel


KERNELS: dict[str, Factory] = {
    "rms_norm": AnyIsa(rms_norm_kernel),
    "rope": AnyIsa(rope_kernel),
    "silu_mul": AnyIsa(silu_mul_kernel),
    "add": AnyIsa(add_kernel),
    "take": AnyIsa(take_kernel),
    "weigh": AnyIsa(weigh_kernel),
    "weigh_rows": AnyIsa(weigh_rows_kernel),
}
