"""Mixtures of experts: the routing of tokens to experts, and the weighted sum of the experts' results.

A layer has three int64 cells for each of E experts: the number of its tokens at [e], the address of their indices
(int32) at [E + e], and the address of their weights (float32) at [2 E + e]. `take` gathers an expert's tokens; linears
and silu_mul run on these rows as on any others. Most experts have no rows where the step has a single token.
"""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.get_put import get_f32, get_i32, get_i64, put_f32, put_i32, put_i64
from mistral_portable_numba.compiler.simd.lanes import all_f32, fma
from mistral_portable_numba.compiler.simd.load_store import load_f32, store_f32
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.reduce import first_lane
from mistral_portable_numba.kernels.exp import exp
from mistral_portable_numba.kernels.registry import AnyIsa, Factory

__all__ = ["KERNELS", "add_rows_kernel", "clear_kernel", "route_kernel"]

_ROWS = 8  # rows of many that a thread claims at a time


def route_kernel() -> Callable[..., Any]:
    """The kernel that chooses the experts of each token, and their weights.

    Arguments: counter, address of T, experts, top_k, scores, bytes between their rows, cells, room for the tokens'
    indices and for their weights, 4 bytes for each token and expert. One thread runs it, as there are few scores.
    """

    @inlined
    def better(scores: Any, experts: Any, expert: Any) -> Any:
        """The number of experts before this one: with higher scores, or with the same score and a lower index."""
        own, before = get_f32(scores + 4 * expert), 0
        for other in range(experts):
            score = get_f32(scores + 4 * other)
            if score > own or (score == own and other < expert):
                before += 1
        return before

    @inlined
    def power(scores: Any, experts: Any, expert: Any) -> Any:
        """e^(score - the highest score)"""
        highest = get_f32(scores)
        for other in range(1, experts):
            highest = max(highest, get_f32(scores + 4 * other))
        return first_lane(exp(all_f32(get_f32(scores + 4 * expert) - highest)))

    @inlined
    def route(scores: Any, experts: Any, top_k: Any, token: Any, cells: Any) -> None:
        total = 0.0
        for expert in range(experts):
            if better(scores, experts, expert) < top_k:
                total += power(scores, experts, expert)
        for expert in range(experts):
            if better(scores, experts, expert) < top_k:
                count = get_i64(cells + 8 * expert)
                put_i32(get_i64(cells + 8 * (experts + expert)) + 4 * count, token)
                put_f32(get_i64(cells + 8 * (2 * experts + expert)) + 4 * count, power(scores, experts, expert) / total)
                put_i64(cells + 8 * expert, count + 1)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, experts, top_k = (
            get_i64(args),
            get_i64(get_i64(args + 8)),
            get_i64(args + 16),
            get_i64(args + 24),
        )
        scores, stride, cells = get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        tokens, shares = get_i64(args + 56), get_i64(args + 64)
        if fetch_add(counter, 1) == 0:
            for expert in range(experts):
                put_i64(cells + 8 * expert, 0)
                put_i64(cells + 8 * (experts + expert), tokens + 4 * count * expert)
                put_i64(cells + 8 * (2 * experts + expert), shares + 4 * count * expert)
            for token in range(count):
                route(scores + token * stride, experts, top_k, token, cells)

    return kernel


def clear_kernel() -> Callable[..., Any]:
    """out = 0. Arguments: counter, address of T, columns, out."""

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, columns = get_i64(args), get_i64(get_i64(args + 8)), get_i64(args + 16)
        out, os = get_i64(args + 24), get_i64(args + 32)
        first = fetch_add(counter, _ROWS)
        while first < count:
            for t in range(first, min(first + _ROWS, count)):
                for column in range(0, columns, 16):
                    store_f32(out + t * os + 4 * column, all_f32(0.0))
            first = fetch_add(counter, _ROWS)

    return kernel


def add_rows_kernel() -> Callable[..., Any]:
    """out[rows[i]] += shares[i] * y[i]. Arguments: counter, address of the count, columns, y, out, address of the
    address of rows (int32, all different) and of shares."""

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, columns = get_i64(args), get_i64(get_i64(args + 8)), get_i64(args + 16)
        y, ys, out, os = get_i64(args + 24), get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        rows, shares = get_i64(get_i64(args + 56)), get_i64(get_i64(args + 64))
        first = fetch_add(counter, _ROWS)
        while first < count:
            for i in range(first, min(first + _ROWS, count)):
                share, to = all_f32(get_f32(shares + 4 * i)), out + os * get_i32(rows + 4 * i)
                for column in range(0, columns, 16):
                    at = 4 * column
                    store_f32(to + at, fma(load_f32(y + ys * i + at), share, load_f32(to + at)))
            first = fetch_add(counter, _ROWS)

    return kernel


KERNELS: dict[str, Factory] = {
    "route": AnyIsa(route_kernel),
    "clear": AnyIsa(clear_kernel),
    "add_rows": AnyIsa(add_rows_kernel),
}
