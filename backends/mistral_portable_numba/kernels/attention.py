"""Attention over the cache, in the manner of FlashAttention (Dao et al. 2022).

A sequence's pages are taken in segments of 8, which begin at multiples of 512 positions. Over a segment, each row (a
query of a head) keeps a running maximum, a running sum, and outputs that are rescaled when the maximum grows; segments
are merged in order. So what a row adds up, and in which order, depends on positions alone: not on threads, on the chunk
that it came in, on other sequences in the step, nor on where pages lie.

Few tokens of a sequence wait for memory. Threads share out its segments, each with all heads, as a page's heads lie
side by side, or with some of them where there are more threads. They leave parts (the maxima, sums and outputs of all
rows), which are merged when all have been made. Of more tokens threads share out the key/value heads, and merge as they
go.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.get_put import get_f32, get_f64_as_f32, get_i32, get_i64, put_f32
from mistral_portable_numba.compiler.simd.lanes import all_f32, fma
from mistral_portable_numba.compiler.simd.load_store import load_f32, store_f32
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.reduce import first_lane
from mistral_portable_numba.kernels.exp import exp
from mistral_portable_numba.kernels.kv import KV_FORMATS
from mistral_portable_numba.kernels.pages import NOTHING, query_row, rows_and_page
from mistral_portable_numba.kernels.registry import Factory
from mistral_portable_numba.layouts import KV_BESIDE
from mistral_portable_numba.segments import SEGMENT, takes_all_heads

__all__ = ["KERNELS", "attention_kernel"]

all_heads = inlined(takes_all_heads)


def attention_kernel(dtype: str, isa: Isa) -> Callable[..., Any]:
    """The kernel of attention over cached keys and values of a type.

    Arguments: counter, address of the number of sequences' pieces, address of their address, query heads, key/value
    heads, head_dim, window (0: none), scale (float64), q, its stride, out, its stride, address of the two addresses of
    the layer's keys and values, address of the address of the pages (int32), address of the address of the parts,
    scratch, scratch bytes per thread, and 0, or 1 to merge parts, when all threads have done the rest.

    A piece is four int64: first token, tokens, position of the first, origin. The positions 64 * n .. 64 * n + 63 of
    its sequence lie in the page `pages[origin + n]`.
    """
    kind = KV_FORMATS[dtype]
    size, scaled, beside = kind.size, kind.scaled, KV_BESIDE[dtype]
    attend, put_query = rows_and_page(dtype, isa), query_row(dtype, isa)

    @inlined
    def extent(piece: Any, window: Any) -> Any:
        """The first and the last page that a piece reads."""
        begin = get_i64(piece + 16)
        oldest = max(0, begin - window + 1) if window > 0 else 0
        return oldest // 64, (begin + get_i64(piece + 8) - 1) // 64

    @inlined
    def clear(part: Any, rows: Any, width: Any) -> None:
        """Begin a part: outputs [rows, width], then the maximum and the sum of each row."""
        states = part + 4 * rows * width
        for row in range(rows):
            for j in range(0, width, 16):
                store_f32(part + 4 * (row * width + j), all_f32(0.0))
            put_f32(states + 8 * row, NOTHING)
            put_f32(states + 8 * row + 4, 0.0)

    @inlined
    def merge(total: Any, part: Any, rows: Any, width: Any) -> None:
        """Add a part to a total."""
        totals, states = total + 4 * rows * width, part + 4 * rows * width
        for row in range(rows):
            before, found = get_f32(totals + 8 * row), get_f32(states + 8 * row)
            most = max(before, found)
            a, b = exp(all_f32(before - most)), exp(all_f32(found - most))
            for j in range(0, width, 16):
                at = 4 * (row * width + j)
                store_f32(total + at, fma(load_f32(part + at), b, load_f32(total + at) * a))
            put_f32(totals + 8 * row, most)
            sums = get_f32(totals + 8 * row + 4) * first_lane(a) + get_f32(states + 8 * row + 4) * first_lane(b)
            put_f32(totals + 8 * row + 4, sums)

    @inlined
    def finish(total: Any, rows: Any, padded: Any, width: Any, head_dim: Any, group: Any, out: Any, os: Any) -> None:
        """Divide a total by its sums, into the rows of a key/value head."""
        whole = head_dim // 16 * 16
        for row in range(rows):
            at, to = total + 4 * row * width, out + row // group * os + 4 * (row % group) * head_dim
            sums = get_f32(total + 4 * padded * width + 8 * row + 4)
            for j in range(0, whole, 16):
                store_f32(to + 4 * j, load_f32(at + 4 * j) / sums)
            for j in range(whole, head_dim):
                put_f32(to + 4 * j, get_f32(at + 4 * j) / sums)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, piece = get_i64(args), get_i64(get_i64(args + 8)), get_i64(get_i64(args + 16))
        heads, kv_heads, head_dim = get_i64(args + 24), get_i64(args + 32), get_i64(args + 40)
        window, scale = get_i64(args + 48), get_f64_as_f32(args + 56)
        q, qs, out, os = get_i64(args + 64), get_i64(args + 72), get_i64(args + 80), get_i64(args + 88)
        all_keys, all_values = get_i64(get_i64(args + 96)), get_i64(get_i64(args + 96) + 8)
        pages, parts = get_i64(get_i64(args + 104)), get_i64(get_i64(args + 112))
        scratch, merges = get_i64(args + 120) + thread * get_i64(args + 128), get_i64(args + 136) == 1
        group, groups = heads // kv_heads, (head_dim + 31) // 32
        width = 32 * groups
        scale_bytes = 64 * 2 * groups if scaled else 0
        columns = (head_dim + beside - 1) // beside * beside
        key_bytes, value_bytes = 64 * columns * size + scale_bytes, 64 * width * size + scale_bytes
        end, before = piece + 32 * count, 0
        while True:
            work = fetch_add(counter, 1)
            while piece < end:  # find the piece
                tokens = get_i64(piece + 8)
                first, last = extent(piece, window)
                together = all_heads(tokens, heads)
                segments = last // SEGMENT - first // SEGMENT + 1
                padded = (tokens * group + 3) // 4 * 4
                part_bytes = 4 * padded * (width + 2)
                shares = min(kv_heads, (threads + segments - 1) // segments) if together else 1
                units = segments * shares if together and not merges else kv_heads
                if merges and not together:
                    units = 0
                if work < before + units:
                    break
                piece, before = piece + 32, before + units
                parts += segments * kv_heads * part_bytes if together else 0
            if piece >= end:
                break
            token, begin, unit = get_i64(piece), get_i64(piece + 16), work - before
            table, rows = pages + 4 * get_i64(piece + 24), tokens * group
            if merges:
                clear(scratch, padded, width)
                for segment in range(segments):
                    merge(scratch, parts + (segment * kv_heads + unit) * part_bytes, padded, width)
                to = out + token * os + 4 * unit * group * head_dim
                finish(scratch, rows, padded, width, head_dim, group, to, os)
                continue
            head, head_end, total, part = unit, unit + 1, scratch, scratch + part_bytes
            if together:
                share, segment = unit % shares, first // SEGMENT + unit // shares
                head, head_end = kv_heads * share // shares, kv_heads * (share + 1) // shares
                part = parts + (unit // shares * kv_heads + head) * part_bytes
                first, last = max(first, SEGMENT * segment), min(last, SEGMENT * segment + SEGMENT - 1)
            else:
                clear(total, padded, width)
            queries = scratch + 2 * part_bytes
            room = queries + (head_end - head) * 4 * padded * width
            for h in range(head, head_end):
                for row in range(padded):
                    which = min(row, rows - 1)
                    at = q + (token + which // group) * qs + 4 * (h * group + which % group) * head_dim
                    put_query(at, scale, head_dim, queries + 4 * ((h - head) * padded + row) * width, width)
            for number in range(first, last + 1):
                if number == first or number % SEGMENT == 0:
                    if number != first:
                        merge(total, part, padded, width)
                    for h in range(head_end - head):
                        clear(part + h * part_bytes, padded, width)
                place = get_i32(table + 4 * number) * kv_heads
                after = place + 1 if together else get_i32(table + 4 * min(number + 1, last)) * kv_heads
                for h in range(head, head_end):
                    attend(
                        all_keys + (place + h) * key_bytes,
                        all_values + (place + h) * value_bytes,
                        all_keys + (after + h) * key_bytes,
                        all_values + (after + h) * value_bytes,
                        head_dim,
                        64 * number,
                        begin,
                        window,
                        rows,
                        group,
                        queries + 4 * (h - head) * padded * width,
                        part + (h - head) * part_bytes,
                        room,
                    )
            if not together:
                merge(total, part, padded, width)
                to = out + token * os + 4 * unit * group * head_dim
                finish(total, rows, padded, width, head_dim, group, to, os)

    return kernel


KERNELS: dict[str, Factory] = {f"attention_{kv}": partial(attention_kernel, kv) for kv in KV_FORMATS}
