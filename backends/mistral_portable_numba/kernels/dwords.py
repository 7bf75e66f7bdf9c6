"""Products of the codes of two tiles with tokens, dword after dword, and prefetches between them."""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.load_store import prefetch
from mistral_portable_numba.compiler.simd.operation import inlined

__all__ = ["two_dwords"]


def two_dwords(codes: Callable[..., Any], dot: Callable[..., Any], group: int, sub_bytes: int) -> Any:
    """The function (sums, p, q, s, k, x, due) that adds the products of the dwords k and k + 1 of 32 columns to sums.

    codes(p, s, k): those of `Format`, or from scratch. dot(sums, left, right, x): an operation of `Tokens`. group:
    tokens whose dwords lie side by side. sub_bytes: bytes of 32 columns of two tiles, whose lines are prefetched from
    `due` on, an eighth with each dword: spread among the products, they do not wait for each other, nor the products
    for them.
    """
    lines = -(-sub_bytes // 64)

    @inlined
    def fetch(due: Any, k: Any) -> None:
        for line in range(k, lines, 8):
            prefetch(due + 64 * line)

    @inlined
    def two(sums: Any, p: Any, q: Any, s: Any, k: Any, x: Any, due: Any) -> Any:
        fetch(due, k)
        sums = dot(sums, codes(p, s, k), codes(q, s, k), x + 4 * group * k)
        fetch(due, k + 1)
        return dot(sums, codes(p, s, k + 1), codes(q, s, k + 1), x + 4 * group * (k + 1))

    return two
