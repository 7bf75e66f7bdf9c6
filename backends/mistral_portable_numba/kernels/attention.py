"""Attention over the cache, in the manner of FlashAttention (Dao et al. 2022).

The rows of a work item are a few query tokens of one sequence, times the query heads of one key/value head. It reads
the sequence's pages in order of position, 64 slots each, and keeps a running maximum, a running sum, and outputs that
are rescaled when the maximum grows. So what a row adds up, and in which order, depends on positions alone: not on
threads, on the chunk that it came in, on other sequences in the step, nor on where pages lie.
"""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.get_put import get_f16, get_f32, get_f64_as_f32, get_i32, get_i64, put_f32
from mistral_portable_numba.compiler.simd.lanes import all_f32, keep_between, lane_numbers, maximum
from mistral_portable_numba.compiler.simd.load_store import load_f16, load_f32, prefetch, store_f32
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.reduce import first_lane, max_lanes, sum_lanes
from mistral_portable_numba.compiler.simd.tokens import Tokens
from mistral_portable_numba.kernels.exp import exp
from mistral_portable_numba.kernels.kv import KV_FORMATS
from mistral_portable_numba.kernels.registry import AnyIsa, Factory

__all__ = ["KERNELS", "attention_kernel"]

_NONE = -3.0e38  # the score of a hidden key


def attention_kernel(dtype: str) -> Callable[..., Any]:
    """The kernel of attention over cached keys and values of a type.

    Arguments: counter, address of the number of items, address of the items' address, query heads, key/value heads,
    head_dim, window (0: none), scale (float64), q, its stride, out, its stride, address of the two addresses of the
    layer's keys and values, address of the address of the pages (int32), scratch, scratch bytes per thread.

    An item is four int64: first token, tokens, position of the first, origin. The positions 64 * n .. 64 * n + 63 of
    its sequence lie in the page `pages[origin + n]`.
    """
    kind = KV_FORMATS[dtype]
    size, scaled, load = kind.size, kind.scaled, kind.load
    each = Tokens(4)
    zeros, fma_one, fma_seen = each.zeros, each.fma_one, each.fma_seen
    add_times, add_scaled = each.add_times, each.add_scaled
    load_each, store_each = each.load_each, each.store_each

    @inlined
    def scores4(keys: Any, scales: Any, ahead: Any, head_dim: Any, q: Any, qs: Any, out: Any) -> None:
        """out [4, 64] = 4 rows times the 64 keys of a page. ahead: where the next page's keys lie, to be prefetched."""
        a, b, c, d = zeros(), zeros(), zeros(), zeros()
        apart = 16 * head_dim * size
        if scaled:
            groups = (head_dim + 31) // 32
            for group in range(groups):
                e, f, g, h = zeros(), zeros(), zeros(), zeros()
                for j in range(32 * group, min(32 * group + 32, head_dim)):
                    at = keys + 16 * j * size
                    prefetch(ahead + 64 * j * size)
                    e = fma_one(e, load(at), q + 4 * j, qs)
                    f = fma_one(f, load(at + apart), q + 4 * j, qs)
                    g = fma_one(g, load(at + 2 * apart), q + 4 * j, qs)
                    h = fma_one(h, load(at + 3 * apart), q + 4 * j, qs)
                scale = scales + 32 * group
                a = add_times(a, e, load_f16(scale))
                b = add_times(b, f, load_f16(scale + 32 * groups))
                c = add_times(c, g, load_f16(scale + 64 * groups))
                d = add_times(d, h, load_f16(scale + 96 * groups))
        else:
            for j in range(head_dim):
                at = keys + 16 * j * size
                for line in range(size):
                    prefetch(ahead + 64 * (j * size + line))
                a = fma_one(a, load(at), q + 4 * j, qs)
                b = fma_one(b, load(at + apart), q + 4 * j, qs)
                c = fma_one(c, load(at + 2 * apart), q + 4 * j, qs)
                d = fma_one(d, load(at + 3 * apart), q + 4 * j, qs)
        store_each(out, 256, a)
        store_each(out + 64, 256, b)
        store_each(out + 128, 256, c)
        store_each(out + 192, 256, d)

    @inlined
    def attend4(
        values: Any,
        scales: Any,
        ahead: Any,
        width: Any,
        weights: Any,
        factors: Any,
        out: Any,
        os: Any,
        whole: Any,
    ) -> None:
        """out [4, width] = out * factors + weights [4, 64] times the 64 values of a page.

        ahead: where the next page's values lie, to be prefetched. Unless `whole`, some of the values are hidden; these
        have the weight 0 and may hold anything.
        """
        for j in range(0, width, 32):
            a = add_scaled(zeros(), load_each(out + 4 * j, os), factors, 4)
            b = add_scaled(zeros(), load_each(out + 4 * j + 64, os), factors, 4)
            for slot in range(64):
                at = values + (slot * width + j) * size
                v, w = load(at), load(at + 16 * size)
                for line in range(0, 32 * size, 64):
                    prefetch(ahead + (slot * width + j) * size + line)
                if scaled:
                    scale = all_f32(get_f16(scales + (slot * width + j) // 16))
                    v, w = v * scale, w * scale
                if whole:
                    a = fma_one(a, v, weights + 4 * slot, 256)
                    b = fma_one(b, w, weights + 4 * slot, 256)
                else:
                    a = fma_seen(a, v, weights + 4 * slot, 256)
                    b = fma_seen(b, w, weights + 4 * slot, 256)
            store_each(out + 4 * j, os, a)
            store_each(out + 4 * j + 64, os, b)

    @inlined
    def soften(scores: Any, position: Any, low: Any, high: Any, whole: Any, state: Any) -> Any:
        """Turn the scores [64] of one row into weights, and update its maximum and sum.

        position: of the first key. Unless `whole`, the keys beyond the positions low..high are hidden and get weight 0.
        Returns the factor by which the row's earlier sum and output shrink.
        """
        a, b, c, d = load_f32(scores), load_f32(scores + 64), load_f32(scores + 128), load_f32(scores + 192)
        p = lane_numbers() + position
        q, r, s = p + 16, p + 32, p + 48
        if not whole:
            a, b = keep_between(a, p, low, high, _NONE), keep_between(b, q, low, high, _NONE)
            c, d = keep_between(c, r, low, high, _NONE), keep_between(d, s, low, high, _NONE)
        before = all_f32(get_f32(state))
        now = all_f32(max_lanes(maximum(maximum(maximum(a, b), maximum(c, d)), before)))
        a, b, c, d = exp(a - now), exp(b - now), exp(c - now), exp(d - now)
        if not whole:
            a, b = keep_between(a, p, low, high, 0.0), keep_between(b, q, low, high, 0.0)
            c, d = keep_between(c, r, low, high, 0.0), keep_between(d, s, low, high, 0.0)
        store_f32(scores, a)
        store_f32(scores + 64, b)
        store_f32(scores + 128, c)
        store_f32(scores + 192, d)
        factor = first_lane(exp(before - now))
        put_f32(state, first_lane(now))
        put_f32(state + 4, get_f32(state + 4) * factor + sum_lanes((a + b) + (c + d)))
        return factor

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, items = get_i64(args), get_i64(get_i64(args + 8)), get_i64(get_i64(args + 16))
        heads, kv_heads, head_dim = get_i64(args + 24), get_i64(args + 32), get_i64(args + 40)
        window, scale = get_i64(args + 48), get_f64_as_f32(args + 56)
        q, qs, out, os = get_i64(args + 64), get_i64(args + 72), get_i64(args + 80), get_i64(args + 88)
        all_keys, all_values = get_i64(get_i64(args + 96)), get_i64(get_i64(args + 96) + 8)
        pages, scratch = get_i64(get_i64(args + 104)), get_i64(args + 112) + thread * get_i64(args + 120)
        group, groups = heads // kv_heads, (head_dim + 31) // 32
        width = 32 * groups
        scale_bytes = 64 * 2 * groups if scaled else 0
        key_bytes, value_bytes = 64 * head_dim * size + scale_bytes, 64 * width * size + scale_bytes
        while True:
            work = fetch_add(counter, 1)
            if work >= count * kv_heads:
                break
            item, head = items + 32 * (work // kv_heads), work % kv_heads
            first, tokens, begin = get_i64(item), get_i64(item + 8), get_i64(item + 16)
            table = pages + 4 * get_i64(item + 24)
            rows = tokens * group
            padded = (rows + 3) // 4 * 4
            queries, outputs = scratch, scratch + 4 * padded * width
            states, weights = outputs + 4 * padded * width, outputs + 4 * padded * (width + 2)
            factors = weights + 4 * 256
            for row in range(padded):
                token, which = first + row // group, head * group + row % group
                for j in range(head_dim):
                    value = get_f32(q + token * qs + 4 * (which * head_dim + j)) * scale if row < rows else 0.0
                    put_f32(queries + 4 * (row * width + j), value)
                for j in range(0, width, 16):
                    store_f32(outputs + 4 * (row * width + j), all_f32(0.0))
                put_f32(states + 8 * row, _NONE)
                put_f32(states + 8 * row + 4, 0.0)
            oldest = max(0, begin - window + 1) if window > 0 else 0
            last = (begin + tokens - 1) // 64
            for number in range(oldest // 64, last + 1):
                position, place = 64 * number, get_i32(table + 4 * number) * kv_heads + head
                keys, values = all_keys + place * key_bytes, all_values + place * value_bytes
                # The machine's own prefetching ends with a page.
                place = get_i32(table + 4 * min(number + 1, last)) * kv_heads + head
                next_keys, next_values = all_keys + place * key_bytes, all_values + place * value_bytes
                for row in range(0, padded, 4):
                    low_first, high_last = begin + row // group, begin + min(row + 3, rows - 1) // group
                    high_first = low_first
                    low_last = max(0, high_last - window + 1) if window > 0 else 0
                    low_first = max(0, low_first - window + 1) if window > 0 else 0
                    if position > high_last or position + 63 < low_first:
                        continue
                    whole = position >= low_last and position + 63 <= high_first
                    scores4(
                        keys,
                        keys + 64 * head_dim * size,
                        next_keys,
                        head_dim,
                        queries + 4 * row * width,
                        4 * width,
                        weights,
                    )
                    for i in range(4):
                        high = begin + min(row + i, rows - 1) // group
                        low = max(0, high - window + 1) if window > 0 else 0
                        factor = soften(weights + 256 * i, position, low, high, whole, states + 8 * (row + i))
                        put_f32(factors + 4 * i, factor)
                    attend4(
                        values,
                        values + 64 * width * size,
                        next_values,
                        width,
                        weights,
                        factors,
                        outputs + 4 * row * width,
                        4 * width,
                        whole,
                    )
            for row in range(rows):
                to = out + (first + row // group) * os + 4 * (head * group + row % group) * head_dim
                total = get_f32(states + 8 * row + 4)
                for j in range(head_dim):
                    put_f32(to + 4 * j, get_f32(outputs + 4 * (row * width + j)) / total)

    return kernel


KERNELS: dict[str, Factory] = {f"attention_{kv}": AnyIsa(attention_kernel, (kv,)) for kv in KV_FORMATS}
