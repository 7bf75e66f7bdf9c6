"""Embeddings: the tokens' rows of a float table, in float32."""

import math
from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.get_put import get_i32, get_i64, put_f32
from mistral_portable_numba.compiler.simd.load_store import store_f32
from mistral_portable_numba.kernels.dense import DENSE
from mistral_portable_numba.kernels.registry import AnyIsa, Factory

__all__ = ["KERNELS", "embedding_kernel"]


def embedding_kernel(dtype: str) -> Callable[..., Any]:
    """The kernel of out[t] = table[tokens[t]]. A token that the table does not have gets a row of NaN.

    Arguments: counter, address of T, rows of the table, columns, table, address of the address of the tokens (int32),
    out, its stride in bytes.
    """
    size, load, get = DENSE[dtype]

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, rows, columns = (
            get_i64(args),
            get_i64(get_i64(args + 8)),
            get_i64(args + 16),
            get_i64(args + 24),
        )
        table, tokens, out, os = get_i64(args + 32), get_i64(get_i64(args + 40)), get_i64(args + 48), get_i64(args + 56)
        whole = columns // 16 * 16
        t = fetch_add(counter, 1)
        while t < count:
            row, to = get_i32(tokens + 4 * t), out + os * t
            if 0 <= row < rows:
                at = table + size * columns * row
                for column in range(0, whole, 16):
                    store_f32(to + 4 * column, load(at + size * column))
                for column in range(whole, columns):
                    put_f32(to + 4 * column, get(at + size * column))
            else:
                for column in range(columns):
                    put_f32(to + 4 * column, math.nan)
            t = fetch_add(counter, 1)

    return kernel


KERNELS: dict[str, Factory] = {f"embedding_{dtype}": AnyIsa(embedding_kernel, (dtype,)) for dtype in DENSE}
