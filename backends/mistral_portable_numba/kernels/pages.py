"""One page in attention: rows of queries times its 64 keys, a softmax, and the weights times its values.

What a row adds up, and in which order, does not depend on the rows beside it.
"""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.compiler.simd.get_put import get_f32, put_f32
from mistral_portable_numba.compiler.simd.lanes import all_f32, keep_between, lane_numbers
from mistral_portable_numba.compiler.simd.load_store import load_f16, load_f32, prefetch, store_f32
from mistral_portable_numba.compiler.simd.maxima import larger, largest_lane
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.reduce import first_lane, sum_lanes
from mistral_portable_numba.compiler.simd.tokens import Tokens
from mistral_portable_numba.kernels.byte_pages import byte_rows, put_byte_query
from mistral_portable_numba.kernels.exp import exp
from mistral_portable_numba.kernels.kv import KV_FORMATS
from mistral_portable_numba.layouts import KV_BESIDE

__all__ = ["NOTHING", "query_row", "rows_and_page"]

NOTHING = -3.0e38
"""The score of a hidden key."""

_AHEAD = 9216
"""Bytes between what few rows read and what they prefetch."""


_LOADS = {"float32": load_f32, "float16": load_f16}

_DIRECT = 16
"""Rows up to which keys and values are not unpacked first."""


def query_row(dtype: str, isa: Isa) -> Callable[..., Any]:
    """The function that stores a row of queries, times a scale, in the form that `attend` takes: 4 * width bytes."""
    bytes_of: Callable[..., Any] = put_byte_query(isa.words)

    @inlined
    def put_query(x: Any, scale: Any, head_dim: Any, to: Any, width: Any) -> None:
        for j in range(0, head_dim, 16):
            store_f32(to + 4 * j, load_f32(x + 4 * j) * scale)

    return bytes_of if KV_FORMATS[dtype].scaled else put_query


@inlined
def _fetch_nothing(keys: Any, width: Any, row: Any) -> None:
    """Floats are all prefetched where they are multiplied."""


def rows_and_page(dtype: str, isa: Isa) -> Callable[..., Any]:
    """The function `attend` for a type of keys and values."""
    kind, wide = KV_FORMATS[dtype], isa.tokens > 4
    size, scaled, beside = kind.size, kind.scaled, KV_BESIDE[dtype]
    load: Any = _LOADS.get(dtype)
    if scaled:
        (few_scores, few_weigh, fetch_more), (many_scores, many_weigh, _) = byte_rows(isa, _AHEAD), byte_rows(isa, 0)
    else:
        few_scores, few_weigh = _four_rows(size, load, wide, fetches=True)
        many_scores, many_weigh = _four_rows(4, load_f32, wide, fetches=False)
        fetch_more = _fetch_nothing

    @inlined
    def unpack(numbers: Any, count: Any, out: Any) -> Any:
        for i in range(0, count, 64):
            for j in range(i, i + 64, 16):
                store_f32(out + 4 * j, load(numbers + j * size))
        return out

    @inlined
    def keep(numbers: Any, count: Any, out: Any) -> Any:
        return numbers

    unpacked = keep if scaled else unpack

    @inlined
    def fetch(address: Any, lines: Any) -> None:
        for line in range(lines):
            prefetch(address + 64 * line)

    @inlined
    def attend(
        keys: Any,
        values: Any,
        next_keys: Any,
        next_values: Any,
        head_dim: Any,
        position: Any,
        begin: Any,
        window: Any,
        rows: Any,
        group: Any,
        queries: Any,
        part: Any,
        scratch: Any,
    ) -> None:
        """Add the keys and values of a page, from `position` on, to the part of all rows.

        For many rows, a page of floats is unpacked to float32, first its keys and then its values, which stay in the
        first-level cache; and each four rows prefetch some of the next page.
        """
        width, padded = (head_dim + 31) // 32 * 32, (rows + 3) // 4 * 4
        columns = (head_dim + beside - 1) // beside * beside
        key_scales, value_scales = keys + 64 * columns * size, values + 64 * width * size
        floats = (scratch + 63) // 64 * 64
        weights = floats + 256 * width
        scaled_weights = weights + 256 * padded
        factors, states = scaled_weights + 4 * 256, part + 4 * padded * width
        lines, qs = 4 * width * size // padded + 1, 4 * width
        source = unpacked(keys, 64 * head_dim, floats) if padded > _DIRECT else keys
        for row in range(0, padded, 4):
            seen, whole = visible(row, position, begin, window, rows, group)
            if not seen:
                continue
            q, w = queries + 4 * row * width, weights + 256 * row
            if padded > _DIRECT:
                fetch(next_keys + row // 4 * lines * 64, lines)
                many_scores(source, key_scales, head_dim, q, qs, w)
            else:
                few_scores(source, key_scales, head_dim, q, qs, w)
            for i in range(row, row + 4):
                high = begin + min(i, rows - 1) // group
                low = max(0, high - window + 1) if window > 0 else 0
                if padded <= _DIRECT:
                    fetch_more(keys, width, i - row)
                put_f32(factors + 4 * i, soften(weights + 256 * i, position, low, high, whole, states + 8 * i))
        source = unpacked(values, 64 * width, floats) if padded > _DIRECT else values
        for row in range(0, padded, 4):
            seen, whole = visible(row, position, begin, window, rows, group)
            if not seen:
                continue
            to, w, f = part + 4 * row * width, weights + 256 * row, factors + 4 * row
            if padded > _DIRECT:
                fetch(next_values + row // 4 * lines * 64, lines)
                many_weigh(source, value_scales, width, w, scaled_weights, f, to, qs, whole)
            else:
                few_weigh(source, value_scales, width, w, scaled_weights, f, to, qs, whole)

    function: Callable[..., Any] = attend
    return function


@inlined
def visible(row: Any, position: Any, begin: Any, window: Any, rows: Any, group: Any) -> Any:
    """Whether four rows see any key of a page, and whether they see all."""
    first, last = begin + row // group, begin + min(row + 3, rows - 1) // group
    low_first = max(0, first - window + 1) if window > 0 else 0
    low_last = max(0, last - window + 1) if window > 0 else 0
    return position <= last and position + 63 >= low_first, position >= low_last and position + 63 <= first


@inlined
def soften(scores: Any, position: Any, low: Any, high: Any, whole: Any, state: Any) -> Any:
    """Turn the scores [64] of one row into weights, and update its maximum and sum.

    position: of the first key. Unless `whole`, the keys beyond the positions low..high are hidden and get weight 0.
    Returns the factor by which the row's earlier sum and output shrink. A score that is NaN may be lost in the maximum;
    its weight is NaN.
    """
    a, b, c, d = load_f32(scores), load_f32(scores + 64), load_f32(scores + 128), load_f32(scores + 192)
    p = lane_numbers() + position
    q, r, s = p + 16, p + 32, p + 48
    if not whole:
        a, b = keep_between(a, p, low, high, NOTHING), keep_between(b, q, low, high, NOTHING)
        c, d = keep_between(c, r, low, high, NOTHING), keep_between(d, s, low, high, NOTHING)
    before = all_f32(get_f32(state))
    now = all_f32(largest_lane(larger(larger(larger(a, b), larger(c, d)), before)))
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


def _four_rows(size: int, load: Any, wide: bool, *, fetches: bool) -> tuple[Any, Any]:
    """The functions of four rows that make scores, and that weigh values; floats have no use for scales and `room`.

    size, load: of a number. wide: whether there are registers for 16 vectors of sums. fetches: whether they prefetch
    what is _AHEAD.
    """
    each = Tokens(4)
    zeros, fma_one, fma_seen = each.zeros, each.fma_one, each.fma_seen
    add_scaled, load_each, store_each = each.add_scaled, each.load_each, each.store_each
    ahead = _AHEAD if fetches else 0

    @inlined
    def wide_scores(keys: Any, scales: Any, head_dim: Any, q: Any, qs: Any, out: Any) -> None:
        """out [4, 64] = 4 rows times the 64 keys of a page."""
        a, b, c, d = zeros(), zeros(), zeros(), zeros()
        for j in range(head_dim):
            at = keys + 64 * j * size
            for line in range(size if fetches else 0):
                prefetch(at + ahead + 64 * line)
            a = fma_one(a, load(at), q + 4 * j, qs)
            b = fma_one(b, load(at + 16 * size), q + 4 * j, qs)
            c = fma_one(c, load(at + 32 * size), q + 4 * j, qs)
            d = fma_one(d, load(at + 48 * size), q + 4 * j, qs)
        store_each(out, 256, a)
        store_each(out + 64, 256, b)
        store_each(out + 128, 256, c)
        store_each(out + 192, 256, d)

    @inlined
    def narrow_scores(keys: Any, scales: Any, head_dim: Any, q: Any, qs: Any, out: Any) -> None:
        """The same, 16 keys at a time, of 32 columns that stay in the first-level cache."""
        for first in range(0, head_dim, 32):
            for part in range(0, 64, 16):
                a = zeros() if first == 0 else load_each(out + 4 * part, 256)
                for j in range(first, min(first + 32, head_dim)):
                    if fetches:
                        prefetch(keys + ahead + (64 * first + 32 * part + 16 * (j - first)) * size)
                    a = fma_one(a, load(keys + (64 * j + part) * size), q + 4 * j, qs)
                store_each(out + 4 * part, 256, a)

    @inlined
    def weigh(
        values: Any, scales: Any, width: Any, weights: Any, room: Any, factors: Any, out: Any, os: Any, whole: Any
    ) -> None:
        """out [4, width] = out * factors + weights [4, 64] times the 64 values of a page.

        Unless `whole`, some of the values are hidden; these have the weight 0 and may hold anything.
        """
        for j in range(0, width, 32):
            for part in range(0, 32, 32 if wide else 16):
                to, at = out + 4 * (j + part), values + (64 * j + part) * size
                a = add_scaled(zeros(), load_each(to, os), factors, 4)
                b = add_scaled(zeros(), load_each(to + 64, os), factors, 4) if wide else a
                for slot in range(64):
                    if fetches:
                        prefetch(at + ahead + 32 * slot * size)
                    if fetches and wide and size == 4:
                        prefetch(at + ahead + 128 * slot + 64)
                    value = at + 32 * slot * size
                    if whole:
                        a = fma_one(a, load(value), weights + 4 * slot, 256)
                        b = fma_one(b, load(value + 16 * size), weights + 4 * slot, 256) if wide else b
                    else:
                        a = fma_seen(a, load(value), weights + 4 * slot, 256)
                        b = fma_seen(b, load(value + 16 * size), weights + 4 * slot, 256) if wide else b
                store_each(to, os, a)
                if wide:
                    store_each(to + 64, os, b)

    return wide_scores if wide else narrow_scores, weigh
